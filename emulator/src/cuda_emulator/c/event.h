#ifndef EMULATOR_EVENT_H
#define EMULATOR_EVENT_H

#include "stream.h"

typedef struct Event {
    Object object;
    unsigned flags;
    Record *record; /* NULL: never recorded */
    struct Capture *captured; /* recorded in a capture: what it stands for there */
} Event;

Event *event_open(Context *context, unsigned flags);
void event_end(Event *event);
CUresult event_find(CUevent handle, Event **event);

/* The event was recorded; takes over the reference. */
void event_set(Event *event, Record *record);

#endif
