/* Everything that a client holds by a handle. */
#ifndef EMULATOR_OBJECT_H
#define EMULATOR_OBJECT_H

#include "emulator.h"

typedef enum Kind {
    OBJECT_CONTEXT = 1,
    OBJECT_STREAM,
    OBJECT_EVENT,
    OBJECT_POOL,
    OBJECT_BLOCK, /* physical memory, of cuMemCreate */
    OBJECT_IMAGE, /* a library or a module */
    OBJECT_KERNEL, /* a kernel or a function */
    OBJECT_GRAPH,
    OBJECT_NODE,
    OBJECT_EXEC,
    OBJECT_USER, /* of cuUserObjectCreate */
    N_KINDS
} Kind;

typedef struct Context Context;

typedef struct Object {
    Kind kind;
    void *handle; /* NULL once the client has destroyed it */
    Context *context; /* that it ends with; NULL: none */
} Object;

/* Gives the object its handle. */
void *object_open(Object *object, Kind kind, Context *context);

/* From now on the handle is invalid; the object itself is the caller's to free. */
void object_close(Object *object);

/* NULL for a handle that never was, is of another kind, or was closed. */
void *object_find(const void *handle, Kind kind);

/* Calls `visit` for every open object; it may close the object it is given. */
void objects_visit(void (*visit)(Object *object, void *data), void *data);

/* Ends an object as the client itself would, whatever its kind; for objects whose context ends. */
void object_end(Object *object);

const char *kind_name(Kind kind);

#endif
