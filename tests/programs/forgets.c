/* A Python extension (limited API, one build for 3.9 and later) that forgets Py_DECREF() on some paths. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* parse(factory, n, valid): n records are made; those of invalid input are dropped without giving them back. */
static PyObject *parse(PyObject *self, PyObject *args)
{
    PyObject *factory;
    int n, valid;
    if (!PyArg_ParseTuple(args, "Oip", &factory, &n, &valid))
        return NULL;
    for (int i = 0; i < n; i++) {
        PyObject *record = PyObject_CallFunction(factory, "i", i);
        if (record == NULL)
            return NULL;
        if (!valid)
            continue; /* the mistake */
        Py_DECREF(record);
    }
    Py_RETURN_NONE;
}

/* fill(dict, n, careful): PyDict_SetItem() takes references of its own to both. */
static PyObject *fill(PyObject *self, PyObject *args)
{
    PyObject *dict;
    int n, careful;
    if (!PyArg_ParseTuple(args, "Oip", &dict, &n, &careful))
        return NULL;
    for (int i = 0; i < n; i++) {
        PyObject *key = PyLong_FromLong(100000 + i), *value = PyUnicode_FromFormat("value %d", i);
        if (key == NULL || value == NULL || PyDict_SetItem(dict, key, value) < 0)
            return NULL;
        Py_DECREF(key);
        if (careful)
            Py_DECREF(value);
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"parse", parse, METH_VARARGS, NULL}, {"fill", fill, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "forgets", NULL, -1, methods};

PyMODINIT_FUNC PyInit_forgets(void)
{
    return PyModule_Create(&module);
}
