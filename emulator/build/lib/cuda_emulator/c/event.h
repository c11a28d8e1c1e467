#ifndef EMULATOR_EVENT_H
#define EMULATOR_EVENT_H

#include "beacon.h"
#include "stream.h"

typedef struct Event {
    Object object;
    unsigned flags;
    Record *record; /* NULL: never recorded */
    Beacon *beacon; /* NULL: of this process only */
    struct Capture *captured; /* recorded in a capture: what it stands for there */
} Event;

Event *event_open(Context *context, unsigned flags);
void event_end(Event *event);
CUresult event_find(CUevent handle, Event **event);

bool event_is_done(const Event *event);
CUresult event_wait(const Event *event);

/* ipc_events.c: recording an event of several processes, and a stream's wait for it. */
CUresult event_announce(Event *event, Stream *stream);
CUresult event_await(const Event *event, Stream *stream);

/* The event was recorded; takes over the reference. */
void event_set(Event *event, Record *record);

#endif
