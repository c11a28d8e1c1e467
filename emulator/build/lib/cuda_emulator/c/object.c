/* Handles. A handle is a number that looks like a pointer: slot, generation and kind. A closed handle is never valid
 * again (the generation of its slot has moved on), so a destroyed stream is an invalid handle and not somebody else's
 * stream; and since the number lies outside the address space, a client that follows it as a pointer faults. */
#include <stdlib.h>

#include "object.h"

typedef struct Slot {
    Object *object; /* NULL: free */
    uint32_t generation;
    uint32_t next_free; /* slot number + 1; 0: none */
} Slot;

enum { SLOT_BITS = 28, GENERATION_BITS = 20, KIND_SHIFT = 4 + SLOT_BITS + GENERATION_BITS };

static Slot *slots;
static uint32_t n_slots, room, first_free;

static void *handle_of(uint32_t slot, Kind kind) {
    uint64_t generation = slots[slot].generation & ((1u << GENERATION_BITS) - 1);
    return (void *)((uint64_t)kind << KIND_SHIFT | generation << (4 + SLOT_BITS) | (uint64_t)slot << 4);
}

void *object_open(Object *object, Kind kind, Context *context) {
    uint32_t slot;
    if (first_free) {
        slot = first_free - 1;
        first_free = slots[slot].next_free;
    } else {
        if (n_slots == room) {
            room = room ? room * 2 : 1024;
            slots = realloc(slots, room * sizeof *slots);
            if (!slots) {
                say("no memory left for handles");
                abort();
            }
        }
        slot = n_slots++;
        slots[slot] = (Slot){.generation = 1};
    }
    slots[slot].object = object;
    object->kind = kind;
    object->context = context;
    object->handle = handle_of(slot, kind);
    return object->handle;
}

static Slot *slot_of(const void *handle) {
    uint64_t slot = ((uint64_t)handle >> 4) & ((1u << SLOT_BITS) - 1);
    return slot < n_slots ? &slots[slot] : NULL;
}

void object_close(Object *object) {
    if (!object->handle)
        return;
    Slot *slot = slot_of(object->handle);
    object->handle = NULL;
    slot->object = NULL;
    slot->generation++;
    slot->next_free = first_free;
    first_free = (uint32_t)(slot - slots) + 1;
}

void *object_find(const void *handle, Kind kind) {
    Slot *slot = slot_of(handle);
    if (!slot || !slot->object || slot->object->handle != handle || slot->object->kind != kind)
        return NULL;
    return slot->object;
}

void objects_visit(void (*visit)(Object *object, void *data), void *data) {
    for (uint32_t i = 0; i < n_slots; i++)
        if (slots[i].object)
            visit(slots[i].object, data);
}

const char *kind_name(Kind kind) {
    static const char *const names[N_KINDS] = {[OBJECT_CONTEXT] = "context",       [OBJECT_STREAM] = "stream",
                                               [OBJECT_EVENT] = "event",           [OBJECT_POOL] = "pool",
                                               [OBJECT_BLOCK] = "physical memory", [OBJECT_IMAGE] = "module",
                                               [OBJECT_KERNEL] = "kernel",         [OBJECT_GRAPH] = "graph",
                                               [OBJECT_NODE] = "graph node",       [OBJECT_EXEC] = "executable graph",
                                               [OBJECT_USER] = "user object"};
    return names[kind];
}
