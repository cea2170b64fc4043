/* A C extension that loses blocks. lose(n): n sessions of 1,000 bytes, each with a name of 40 and a body of
 * 300 bytes that only it points to. keep(n): the same, kept in a static table. give_back(): those freed.
 * fail(n): n times what an early return on an error forgets: 2,000 bytes.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#define MOST 100000

struct session {
    void (*on_end)(struct session *);
    char *name, *body;
    char room[1000 - 3 * sizeof(void *)];
};

static struct session *kept[MOST];
static int count;

void session_end(struct session *session)
{
    free(session->name);
    free(session->body);
    free(session);
}

static __attribute__((noinline)) struct session *made(void)
{
    struct session *session = calloc(1, sizeof *session);
    session->on_end = session_end;
    session->name = calloc(1, 40);
    session->body = calloc(1, 300);
    return session;
}

/* Nothing that looks like an address stays behind in what was stack. */
static __attribute__((noinline)) void scrub(void)
{
    volatile char room[65536];
    memset((void *)room, 0, sizeof room);
}

static __attribute__((noinline)) void lose_some(long n)
{
    while (n--)
        made();
}

static PyObject *lose(PyObject *self, PyObject *n)
{
    lose_some(PyLong_AsLong(n));
    scrub();
    Py_RETURN_NONE;
}

static PyObject *keep(PyObject *self, PyObject *n)
{
    for (long i = PyLong_AsLong(n); i > 0 && count < MOST; i--)
        kept[count++] = made();
    Py_RETURN_NONE;
}

static PyObject *give_back(PyObject *self, PyObject *none)
{
    while (count) {
        session_end(kept[--count]);
        kept[count] = NULL;
    }
    scrub();
    Py_RETURN_NONE;
}

static __attribute__((noinline)) int parsed(long number)
{
    char *volatile buffer = calloc(1, 2000);
    if (number >= 0)
        return -1; /* and the buffer is forgotten */
    free(buffer);
    return 0;
}

static PyObject *fail(PyObject *self, PyObject *n)
{
    for (long i = 0; i < PyLong_AsLong(n); i++)
        if (parsed(i) == 0)
            break;
    scrub();
    PyErr_SetString(PyExc_ValueError, "not what was expected");
    return NULL;
}

static PyMethodDef methods[] = {
    {"lose", lose, METH_O, NULL},
    {"keep", keep, METH_O, NULL},
    {"give_back", give_back, METH_NOARGS, NULL},
    {"fail", fail, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "lossy", NULL, 0, methods};

PyMODINIT_FUNC PyInit_lossy(void)
{
    return PyModule_Create(&module);
}
