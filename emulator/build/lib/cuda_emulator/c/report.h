/* What the emulator tells beside the API. */
#ifndef EMULATOR_REPORT_H
#define EMULATOR_REPORT_H

#include "emulator.h"

/* Something the client does that hardware would punish at random, or never: said on stderr and kept for
 * emulator_report. */
void hazard(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A wait of the current call took too long: says which streams run what. */
void report_timeout(void);

#endif
