/* What processes see of an interprocess event: a page that they share, with a count of records and of those that are
 * done. */
#ifndef EMULATOR_BEACON_H
#define EMULATOR_BEACON_H

#include "emulator.h"

typedef struct Beacon Beacon;

Beacon *beacon_new(void); /* NULL: the system has none */
Beacon *beacon_keep(Beacon *beacon);
void beacon_drop(Beacon *beacon);

/* From and to the handle that is sent to another process; NULL: not a handle, or its process is gone. */
void beacon_describe(const Beacon *beacon, CUipcEventHandle *handle);
Beacon *beacon_open(const CUipcEventHandle *handle);

uint32_t beacon_announce(Beacon *beacon); /* a record is submitted; its number */
void beacon_reach(Beacon *beacon, uint32_t number); /* it is done */
uint32_t beacon_latest(const Beacon *beacon);
bool beacon_has_reached(const Beacon *beacon, uint32_t number);

/* Waits, without the lock; false after the time limit of the settings. */
bool beacon_wait(const Beacon *beacon, uint32_t number);

#endif
