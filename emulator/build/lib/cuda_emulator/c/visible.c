/* CUDA_VISIBLE_DEVICES: which of the devices a process sees, and in which order. Read when the driver is initialised,
 * as the real one does: entries are ordinals, or beginnings of UUIDs (GPU-...); the first one that is no device, or is
 * there twice, ends the list. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"

/* The device that an entry means, or -1. */
static int device_of(const char *entry, size_t length, int n_devices) {
    if (length && isdigit((unsigned char)entry[0])) {
        char *end;
        long ordinal = strtol(entry, &end, 10);
        return end == entry + length && ordinal < n_devices ? (int)ordinal : -1;
    }
    int found = -1;
    for (int i = 0; i < n_devices && length > 4; i++) {
        char name[UUID_TEXT];
        uuid_text(i, name);
        if (!strncmp(entry, name, length)) {
            if (found >= 0)
                return -1; /* the beginning of more than one */
            found = i;
        }
    }
    return found;
}

int visible_devices(int *physical) {
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    int n = 0;
    for (int i = 0; !text && i < settings.devices; i++)
        physical[n++] = i;
    while (text && n < MAX_DEVICES) {
        text += strspn(text, " ");
        size_t length = strcspn(text, ", ");
        int device = device_of(text, length, settings.devices);
        for (int i = 0; i < n; i++)
            if (physical[i] == device)
                device = -1;
        if (device < 0)
            break;
        physical[n++] = device;
        text += length + strspn(text + length, " ");
        text = *text == ',' ? text + 1 : NULL;
    }
    return n;
}

void uuid_bytes(int physical, char *bytes) {
    memcpy(bytes, "cuda-emulator-", 14);
    bytes[14] = 0;
    bytes[15] = (char)physical;
}

void uuid_text(int physical, char *text) {
    char bytes[16];
    uuid_bytes(physical, bytes);
    text += sprintf(text, "GPU");
    for (int i = 0; i < 16; i++)
        text +=
            sprintf(text, i == 0 || i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", (unsigned char)bytes[i]);
}
