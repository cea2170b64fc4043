/* Declarations of structures that CPython keeps in .c files, and that no installed header therefore has.
 *
 * Facts, not code: names, order and types of fields, per range of versions, each with its source. HEX is the
 * version the table is made for (normally PY_VERSION_HEX; the generator sets it to an older patch release to see
 * what that one differs in). tests/integration/test_layouts.py checks them inside real interpreters, and
 * `generate.py --check-debuginfo` against the debug information of interpreters that carry it.
 */
#ifndef HEX
#define HEX PY_VERSION_HEX
#endif

/* ---- Modules/_asynciomodule.c ------------------------------------------------------------------------- */

typedef enum { STATE_PENDING, STATE_CANCELLED, STATE_FINISHED } fut_state;

#if HEX >= 0x030e0000
/* 3.14: awaited_by and is_task for debuggers (gh-91048); tasks in linked lists (gh-107803). */
#define FUTURE_FIELDS(p)                                                                                       \
    PyObject_HEAD PyObject *p##_loop, *p##_callback0, *p##_context0, *p##_callbacks, *p##_exception,           \
        *p##_exception_tb, *p##_result, *p##_source_tb, *p##_cancel_msg, *p##_cancelled_exc, *p##_awaited_by;  \
    fut_state p##_state;                                                                                       \
    char p##_is_task;                                                                                          \
    char p##_awaited_by_is_set;                                                                                \
    unsigned p##_log_tb : 1;                                                                                   \
    unsigned p##_blocking : 1;
#elif HEX >= 0x030d0000
/* 3.13: dict and weakreflist became managed; flags became bit-fields. */
#define FUTURE_FIELDS(p)                                                                                       \
    PyObject_HEAD PyObject *p##_loop, *p##_callback0, *p##_context0, *p##_callbacks, *p##_exception,           \
        *p##_exception_tb, *p##_result, *p##_source_tb, *p##_cancel_msg, *p##_cancelled_exc;                   \
    fut_state p##_state;                                                                                       \
    unsigned p##_log_tb : 1;                                                                                   \
    unsigned p##_blocking : 1;
#elif HEX >= 0x030b0000
/* 3.11, 3.12: the cancellation is kept as an exception, not as an exception state. */
#define FUTURE_FIELDS(p)                                                                                       \
    PyObject_HEAD PyObject *p##_loop, *p##_callback0, *p##_context0, *p##_callbacks, *p##_exception,           \
        *p##_exception_tb, *p##_result, *p##_source_tb, *p##_cancel_msg;                                       \
    fut_state p##_state;                                                                                       \
    int p##_log_tb, p##_blocking;                                                                              \
    PyObject *dict, *p##_weakreflist, *p##_cancelled_exc;
#elif HEX >= 0x030a0600
/* 3.10.6: exception_tb (bpo-45924, merged in July 2022). */
#define FUTURE_FIELDS(p)                                                                                       \
    PyObject_HEAD PyObject *p##_loop, *p##_callback0, *p##_context0, *p##_callbacks, *p##_exception,           \
        *p##_exception_tb, *p##_result, *p##_source_tb, *p##_cancel_msg;                                       \
    fut_state p##_state;                                                                                       \
    int p##_log_tb, p##_blocking;                                                                              \
    PyObject *dict, *p##_weakreflist;                                                                          \
    _PyErr_StackItem p##_cancelled_exc_state;
#else
/* 3.9, 3.10 to 3.10.5. */
#define FUTURE_FIELDS(p)                                                                                       \
    PyObject_HEAD PyObject *p##_loop, *p##_callback0, *p##_context0, *p##_callbacks, *p##_exception,           \
        *p##_result, *p##_source_tb, *p##_cancel_msg;                                                          \
    fut_state p##_state;                                                                                       \
    int p##_log_tb, p##_blocking;                                                                              \
    PyObject *dict, *p##_weakreflist;                                                                          \
    _PyErr_StackItem p##_cancelled_exc_state;
#endif

typedef struct {
    FUTURE_FIELDS(fut)
} FutureObj;

typedef struct {
    FUTURE_FIELDS(task)
#if HEX >= 0x030d0000
    unsigned task_must_cancel : 1;
    unsigned task_log_destroy_pending : 1;
    int task_num_cancels_requested;
    PyObject *task_fut_waiter, *task_coro, *task_name, *task_context;
#if HEX >= 0x030e0000
    struct llist_node task_node;
#ifdef Py_GIL_DISABLED
    uintptr_t task_tid;
#endif
#endif
#else
    PyObject *task_fut_waiter, *task_coro, *task_name, *task_context;
    int task_must_cancel, task_log_destroy_pending;
#if HEX >= 0x030b0000
    int task_num_cancels_requested;
#endif
#endif
} TaskObj;

typedef struct {
    PyObject_HEAD TaskObj *sw_task;
    PyObject *sw_arg;
} TaskStepMethWrapper;

#if HEX < 0x030a0000
typedef struct { /* 3.9; from 3.10 on a PyCFunction bound to the task */
    PyObject_HEAD TaskObj *ww_task;
} TaskWakeupMethWrapper;
#endif

typedef struct {
    PyObject_HEAD FutureObj *future;
} futureiterobject;

#if HEX < 0x030c0000
typedef struct { /* to 3.11: value of "__asyncio_running_event_loop__" in the thread state's dict */
    PyObject_HEAD PyObject *rl_loop;
    pid_t rl_pid;
} PyRunningLoopHolder;
#elif HEX < 0x030e0000
typedef struct { /* 3.12, 3.13: the state of the module */
    PyTypeObject *FutureIterType, *TaskStepMethWrapper_Type, *FutureType, *TaskType;
    PyObject *asyncio_mod, *context_kwname, *current_tasks, *scheduled_tasks, *eager_tasks, *iscoroutine_typecache,
        *asyncio_get_event_loop_policy, *asyncio_future_repr_func, *asyncio_CancelledError,
        *asyncio_InvalidStateError, *asyncio_task_get_stack_func, *asyncio_task_print_stack_func,
        *asyncio_task_repr_func, *asyncio_iscoroutine_func, *traceback_extract_stack;
#if HEX < 0x030d0000
    PyObject *cached_running_loop;
    volatile uint64_t cached_running_loop_tsid;
#endif
    uint64_t task_name_counter;
#ifndef Py_GIL_DISABLED
    void *fi_freelist;
    Py_ssize_t fi_freelist_len;
#endif
} asyncio_state;
#else
typedef struct { /* 3.14: tasks of other classes only; the module's own are in linked lists */
    PyTypeObject *FutureIterType, *TaskStepMethWrapper_Type, *FutureType, *TaskType;
    PyObject *asyncio_mod, *context_kwname, *non_asyncio_tasks, *non_asyncio_eager_tasks, *iscoroutine_typecache,
        *asyncio_get_event_loop_policy, *asyncio_future_repr_func, *asyncio_CancelledError,
        *asyncio_InvalidStateError, *asyncio_task_get_stack_func, *asyncio_task_print_stack_func,
        *asyncio_task_repr_func, *asyncio_iscoroutine_func, *traceback_extract_stack;
    uint64_t task_name_counter;
    void *debug_offsets;
} asyncio_state;
#endif

#if HEX >= 0x030e0000
/* The contents of the ELF section AsyncioDebug (gh-91048). */
struct _Py_AsyncioModuleDebugOffsets {
    struct {
        uint64_t size, task_name, task_awaited_by, task_is_task, task_awaited_by_is_set, task_coro, task_node;
    } asyncio_task_object;
    struct {
        uint64_t size, asyncio_tasks_head;
    } asyncio_interpreter_state;
    struct {
        uint64_t size, asyncio_running_loop, asyncio_running_task, asyncio_tasks_head;
    } asyncio_thread_state;
};
#endif

/* ---- Modules/_collectionsmodule.c --------------------------------------------------------------------- */

#define BLOCKLEN 64

typedef struct deque_block {
    struct deque_block *leftlink;
    PyObject *data[BLOCKLEN];
    struct deque_block *rightlink;
} deque_block;

typedef struct {
    PyObject_VAR_HEAD deque_block *leftblock, *rightblock;
    Py_ssize_t leftindex, rightindex;
    size_t state;
    Py_ssize_t maxlen;
#if HEX >= 0x030b0000
    Py_ssize_t numfreeblocks; /* 3.11: free blocks per deque instead of per process (gh-90815) */
    deque_block *freeblocks[16];
#endif
    PyObject *weakreflist;
} dequeobject;

/* ---- Modules/_functoolsmodule.c ----------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD PyObject *fn, *args, *kw, *dict, *weakreflist;
#if HEX >= 0x030e0000
    PyObject *placeholder; /* 3.14: functools.Placeholder (gh-119127) */
    Py_ssize_t phcount;
#endif
    vectorcallfunc vectorcall;
} partialobject;

typedef struct transcribed_lru_elem {
    PyObject_HEAD struct transcribed_lru_elem *prev, *next; /* borrowed */
    Py_hash_t hash;
    PyObject *key, *result;
} lru_list_elem;

typedef struct {
    lru_list_elem root;
    ternaryfunc wrapper;
    int typed;
    PyObject *cache;
    Py_ssize_t hits;
    PyObject *func;
    Py_ssize_t maxsize, misses;
#if HEX >= 0x030a0000
    PyObject *kwd_mark; /* 3.10: in the module's state before (bpo-40077) */
    PyTypeObject *lru_list_elem_type;
#endif
    PyObject *cache_info_type, *dict, *weakreflist;
} lru_cache_object;

/* ---- Modules/_threadmodule.c -------------------------------------------------------------------------- */

#if HEX < 0x030d01f0
typedef struct { /* to 3.13.0: a POSIX semaphore behind lock_lock */
    PyObject_HEAD PyThread_type_lock lock_lock;
    PyObject *in_weakreflist;
    char locked;
} lockobject;
#else
typedef struct { /* 3.13.1: PyMutex (gh-117721) */
    PyObject_HEAD PyMutex lock;
} lockobject;
#endif

#if HEX < 0x030e0000
typedef struct {
    PyObject_HEAD PyThread_type_lock rlock_lock;
    unsigned long rlock_owner;
    unsigned long rlock_count;
    PyObject *in_weakreflist;
} rlockobject;
#else
typedef struct { /* 3.14: the parking lot (gh-117657) */
    PyObject_HEAD _PyRecursiveMutex lock;
} rlockobject;
#endif

#if HEX >= 0x030d0000
typedef struct { /* 3.13: threading.Thread._handle */
    struct llist_node node, shutdown_node;
    unsigned long long ident;
    unsigned long os_handle;
    int has_os_handle;
    int state;
    PyMutex mutex;
    PyEvent thread_is_exiting;
    _PyOnceFlag once;
    Py_ssize_t refcount;
} ThreadHandle;

typedef struct {
    PyObject_HEAD ThreadHandle *handle;
} PyThreadHandleObject;

enum {
    THREAD_HANDLE_NOT_STARTED = 1,
    THREAD_HANDLE_STARTING = 2,
    THREAD_HANDLE_RUNNING = 3,
    THREAD_HANDLE_DONE = 4
};

typedef struct {
    PyObject_HEAD PyObject *args, *kw, *weakreflist, *localdicts, *thread_watchdogs;
} localobject;
#else
typedef struct {
    PyObject_HEAD PyObject *key, *args, *kw, *weakreflist, *dummies, *wr_callback;
} localobject;
#endif

/* ---- Modules/_queuemodule.c --------------------------------------------------------------------------- */

typedef struct {
#if HEX >= 0x030d0000
    /* 3.13: a ring buffer and the parking lot instead of a lock (gh-113884) */
    PyObject_HEAD _Bool has_threads_waiting;
    struct {
        Py_ssize_t put_idx, get_idx;
        PyObject **items;
        Py_ssize_t items_cap, num_items;
    } buf;
#else
    PyObject_HEAD PyThread_type_lock lock;
    int locked;
    PyObject *lst;
    Py_ssize_t lst_pos;
#endif
    PyObject *weakreflist;
} simplequeueobject;

/* ---- Modules/socketmodule.h, Modules/selectmodule.c --------------------------------------------------- */

typedef struct {
    PyObject_HEAD int sock_fd, sock_family, sock_type, sock_proto;
    PyObject *(*errorhandler)(void);
    int64_t sock_timeout;
#if HEX >= 0x030c0000
    void *state;
#endif
} PySocketSockObject;

typedef struct {
    PyObject_HEAD int epfd;
} pyEpoll_Object;

typedef struct {
    PyObject_HEAD PyObject *dict;
    int ufd_uptodate, ufd_len;
    void *ufds;
    int poll_running;
} pollObject;

/* ---- Objects/genobject.c, Objects/iterobject.c -------------------------------------------------------- */

typedef struct {
    PyObject_HEAD PyAsyncGenObject *ags_gen;
    PyObject *ags_sendval;
    int ags_state;
} PyAsyncGenASend;

typedef struct {
    PyObject_HEAD PyAsyncGenObject *agt_gen;
#if HEX >= 0x030f0000
    PyObject *agt_typ, *agt_tb, *agt_val;
#else
    PyObject *agt_args;
#endif
    int agt_state;
} PyAsyncGenAThrow;

typedef struct {
    PyObject_HEAD PyObject *agw_val;
} transcribed_agw;
#define _PyAsyncGenWrappedValue transcribed_agw

typedef struct {
    PyObject_HEAD PyCoroObject *cw_coroutine;
} PyCoroWrapper;

#if HEX >= 0x030a0000
typedef struct {
    PyObject_HEAD PyObject *wrapped, *default_value;
} anextawaitableobject;
#endif

/* ---- Objects/descrobject.c ---------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD PyWrapperDescrObject *descr;
    PyObject *self;
} wrapperobject;

/* ---- Modules/atexitmodule.c --------------------------------------------------------------------------- */

#if HEX < 0x030a0000
typedef struct { /* 3.9; the interpreter's from 3.10 on (bpo-42639) */
    void **atexit_callbacks;
    int ncallbacks, callback_len;
} atexitmodule_state;
#endif

/* ---- Python/hamt.c ------------------------------------------------------------------------------------ */

#if HEX < 0x030c0000
typedef struct {
    PyObject_VAR_HEAD uint32_t b_bitmap;
    PyObject *b_array[1];
} PyHamtNode_Bitmap;
#endif

typedef struct {
    PyObject_HEAD PyHamtNode *a_array[32];
    Py_ssize_t a_count;
} PyHamtNode_Array;

typedef struct {
    PyObject_VAR_HEAD int32_t c_hash;
    PyObject *c_array[1];
} PyHamtNode_Collision;

/* ---- Objects/odictobject.c ---------------------------------------------------------------------------- */

typedef struct {
    PyDictObject od_dict;
    void *od_first, *od_last, *od_fast_nodes;
    Py_ssize_t od_fast_nodes_size;
    void *od_resize_sentinel;
    size_t od_state;
    PyObject *od_inst_dict, *od_weakreflist;
} transcribed_odict;
#define PyODictObject transcribed_odict

/* ---- Objects/moduleobject.c (a header of its own from 3.10 on) ---------------------------------------- */

#if HEX < 0x030a0000
typedef struct {
    PyObject_HEAD PyObject *md_dict;
    struct PyModuleDef *md_def;
    void *md_state;
    PyObject *md_weaklist;
    PyObject *md_name;
} PyModuleObject;
#endif

/* ---- Objects/dict-common.h (pycore_dict.h from 3.11 on) ----------------------------------------------- */

#if HEX < 0x030b0000
typedef struct {
    Py_hash_t me_hash;
    PyObject *me_key, *me_value;
} PyDictKeyEntry;

struct _dictkeysobject {
    Py_ssize_t dk_refcnt, dk_size;
    void *dk_lookup;
    Py_ssize_t dk_usable, dk_nentries;
    char dk_indices[];
};
typedef struct _dictkeysobject transcribed_keys;
#define PyDictKeysObject transcribed_keys
#endif

#if HEX >= 0x030b0000 && HEX < 0x030c0000
/* 3.11, Include/internal/pycore_object.h, _PyObject_ValuesPointer: words before the object. */
#define INLINE_VALUES_POINTER_OFFSET (-4 * (int)sizeof(PyObject *))
#endif

#if HEX >= 0x030c0000 && HEX < 0x030d0000
/* 3.12, the same header, _PyObject_DictOrValuesPointer: values when the lowest bit is set, else a dict. */
#define MANAGED_DICT_OFFSET (-3 * (int)sizeof(PyObject *))
#endif

/* ---- Objects/obmalloc.c (pycore_obmalloc.h from 3.12 on) ---------------------------------------------- */

#if HEX < 0x030c0000
struct pool_header {
    union {
        unsigned char *_padding;
        unsigned int count;
    } ref;
    unsigned char *freeblock;
    struct pool_header *nextpool, *prevpool;
    unsigned int arenaindex, szidx, nextoffset, maxnextoffset;
};

struct arena_object {
    uintptr_t address;
    unsigned char *pool_address;
    unsigned int nfreepools, ntotalpools;
    struct pool_header *freepools;
    struct arena_object *nextarena, *prevarena;
};

#define ALIGNMENT 16
#define SMALL_REQUEST_THRESHOLD 512
#define NB_SMALL_SIZE_CLASSES (SMALL_REQUEST_THRESHOLD / ALIGNMENT)
#if HEX >= 0x030a0000 /* 3.10: arenas found through a radix tree, and larger (bpo-37448) */
#define WITH_PYMALLOC_RADIX_TREE 1
#define ARENA_BITS 20
#define POOL_BITS 14
#else
#define ARENA_BITS 18
#define POOL_BITS 12
#endif
#define ARENA_SIZE (1 << ARENA_BITS)
#define POOL_SIZE (1 << POOL_BITS)
#define POOL_OVERHEAD ((sizeof(struct pool_header) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT)
#endif

/* ---- Modules/_tracemalloc.c (Python/tracemalloc.c and pycore_tracemalloc.h from 3.12 on) --------------- */

#if HEX < 0x030c0000
struct __attribute__((packed)) tracemalloc_frame {
    PyObject *filename;
    unsigned int lineno;
};

struct tracemalloc_traceback {
    Py_uhash_t hash;
    uint16_t nframe, total_nframe; /* 3.9 (bpo-37961) */
    struct tracemalloc_frame frames[1];
};
#endif

struct tracemalloc_trace {
    size_t size;
    struct tracemalloc_traceback *traceback;
};
