/* Ending an object of any kind, for contexts that end. */
#include "event.h"
#include "kernel.h"
#include "object.h"

void object_end(Object *object) {
    switch (object->kind) {
    case OBJECT_STREAM:
        stream_close((Stream *)object);
        return;
    case OBJECT_EVENT:
        event_end((Event *)object);
        return;
    case OBJECT_IMAGE:
        image_close((Image *)object);
        return;
    default: /* kernels end with their image, and nothing else belongs to a context */
        return;
    }
}
