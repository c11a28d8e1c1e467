/* What the library exports beside the CUDA driver API: for tests, in the process that runs on the emulator. */
#ifndef EMULATOR_CONTROL_H
#define EMULATOR_CONTROL_H

#include <stddef.h>
#include <stdint.h>

/* A JSON object: devices, allocations, streams with what they run, objects alive, calls counted, hazards found. Returns
 * the bytes that it needs, the final 0 not counted, as snprintf does. */
size_t emulator_report(char *room, size_t size);

/* Bytes of live allocations on a device; -1: on all of them, and pinned and managed memory. */
size_t emulator_live_bytes(int device);

/* How many objects the client has made and not destroyed: streams, events, pools, modules, graphs and so on. */
size_t emulator_live_objects(void);

/* How many hazards were found. */
size_t emulator_hazards(void);

/* Waits until no stream has work. 0, or -1 after the time limit of the settings. */
int emulator_wait_idle(void);

/* Replaces all faults by those of the text. 0, or 1 + the position of the first item that cannot be read; then nothing
 * is changed. */
int emulator_set_faults(const char *text);

/* From now on every call for the device fails. 0, or -1: there is no such device. */
int emulator_lose_device(int device);

/* Makes a lost device, or one whose primary context has a sticky error, well again, with everything of that context
 * gone: memory, streams, events, modules. Whoever retained it goes on with the same handle. 0, or -1 as above. */
int emulator_restore_device(int device);

/* From now on each call of this name, with its algorithm as in "cudnnConvolutionForward/2", takes so much longer by the
 * times of events: the device's clock then is ahead of the host's, and nobody waits. 0 ends that. */
void emulator_declare_time(const char *name, uint64_t nanoseconds);

/* For libraries on top of the driver that belong to the emulator. A call of theirs begins: it is counted, under jitter
 * it takes as long as an operation would, and what is not 0 is the CUresult of a fault injected for it, by its name. */
int emulator_library_call(const char *name);

/* They have made (1) or destroyed (-1) an object, such as "cudnnHandle". */
void emulator_library_object(const char *kind, int change);

/* What was declared for a call passes on the stream, behind what is queued there; in a capture nothing does. */
void emulator_library_takes(const char *name, const void *stream);

/* Adds a hazard of the kind "library" to the report. */
void emulator_add_hazard(const char *text);

#endif
