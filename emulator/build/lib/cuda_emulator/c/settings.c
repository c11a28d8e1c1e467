/* The settings, read once from the environment: CUDA_EMULATOR_*. A value that cannot be read is named and the default
 * taken: the Python side has checked what it writes, so this meets only what a person typed. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulator.h"
#include "faults.h"
#include "trace.h"

Settings settings;

static const char *text_of(const char *name) {
    char full[64];
    snprintf(full, sizeof full, "CUDA_EMULATOR_%s", name);
    const char *text = getenv(full);
    return text && *text ? text : NULL;
}

static uint64_t number_of(const char *name, uint64_t fallback, uint64_t least, uint64_t most) {
    const char *text = text_of(name);
    if (!text)
        return fallback;
    char *end;
    unsigned long long value = strtoull(text, &end, 0);
    if (*end || !isdigit((unsigned char)*text) || value < least || value > most) {
        say("CUDA_EMULATOR_%s=%s is not a whole number from %llu to %llu; %llu is taken", name, text,
            (unsigned long long)least, (unsigned long long)most, (unsigned long long)fallback);
        return fallback;
    }
    return value;
}

static void read_memory(void) {
    const char *text = text_of("MEMORY");
    size_t last = (size_t)256 << 20;
    for (int i = 0; i < MAX_DEVICES; i++) {
        if (text && *text) {
            char *end;
            unsigned long long bytes = strtoull(text, &end, 10);
            if (end == text || (*end && *end != ',')) {
                say("CUDA_EMULATOR_MEMORY: cannot read \"%s\" as a list of bytes", text);
                text = NULL;
            } else {
                last = bytes;
                text = *end ? end + 1 : end;
            }
        }
        settings.memory[i] = last; /* the last one given counts for all further devices */
    }
}

static void read_peers(void) {
    const char *text = text_of("PEERS");
    bool all = !text || !strcmp(text, "all");
    for (int i = 0; i < MAX_DEVICES; i++)
        settings.peers[i] = all ? 0xffffu & ~(1u << i) : 0;
    if (all || !strcmp(text, "none"))
        return;
    int from, to, used;
    while (sscanf(text, "%d-%d%n", &from, &to, &used) == 2 && from >= 0 && from < MAX_DEVICES && to >= 0 &&
           to < MAX_DEVICES) {
        settings.peers[from] |= 1u << to;
        text += used;
        if (*text == ',')
            text++;
    }
    if (*text)
        say("CUDA_EMULATOR_PEERS: cannot read \"%s\"; write all, none, or pairs like 0-1,1-0", text);
}

static void read_compute(void) {
    const char *text = text_of("COMPUTE");
    settings.compute_major = 9;
    settings.compute_minor = 0;
    if (text && sscanf(text, "%d.%d", &settings.compute_major, &settings.compute_minor) != 2)
        say("CUDA_EMULATOR_COMPUTE=%s is not a version like 9.0", text);
}

__attribute__((constructor)) static void read_settings(void) {
    settings.devices = (int)number_of("DEVICES", 2, 1, MAX_DEVICES);
    read_memory();
    read_peers();
    read_compute();
    settings.seed = number_of("SEED", 0, 0, UINT64_MAX);
    settings.jitter_us = (unsigned)number_of("JITTER_US", 0, 0, 10000000);
    const char *poison = text_of("POISON");
    settings.poison = poison && !strcmp(poison, "off") ? -1 : (int)number_of("POISON", 0xCB, 0, 255);
    settings.red_zone = number_of("RED_ZONES", 64, 0, 4096);
    settings.version = (int)number_of("VERSION", CUDA_VERSION, 1000, 99990);
    settings.timeout_ns = number_of("TIMEOUT_S", 60, 1, 86400) * 1000000000u;
    const char *faults = text_of("FAULTS");
    size_t bad = faults ? faults_set(faults) : 0;
    if (bad)
        say("CUDA_EMULATOR_FAULTS: cannot read \"%s\"; no fault is injected", faults + bad - 1);
    trace_open(text_of("TRACE"));
}
