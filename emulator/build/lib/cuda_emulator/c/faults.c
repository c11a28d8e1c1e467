/* Injected faults. A text is a list of items joined by ';', an item `target:when:error[:device=N][:sticky]`:
 *
 *     target  a call (cuMemAlloc stands for each of its versions), or @kind of an operation on a stream
 *     when    N the N-th time, N+ from the N-th time on, * always, p=0.01 at random under the seed
 *     error   a name without CUDA_ERROR_, or a number
 *
 * A fault of a call is its answer and nothing else happens, unless :sticky marks the context as broken too. A fault of
 * an operation comes asynchronously and is sticky. Occurrences are counted in the order of the calls and submissions
 * that match target and device, so the same program meets the same faults, whatever the streams do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "call.h"
#include "faults.h"

typedef struct Fault {
    char target[80];
    uint64_t first, last; /* occurrences, counted from 1 */
    double probability; /* of each occurrence; 1: always */
    CUresult error;
    int device; /* -1: any */
    bool sticky;
    uint64_t count;
} Fault;

static Fault *faults;
static size_t n_faults;

static bool read_when(const char *text, Fault *fault) {
    char *end;
    fault->first = 1;
    fault->last = UINT64_MAX;
    fault->probability = 1;
    if (!strcmp(text, "*"))
        return true;
    if (!strncmp(text, "p=", 2)) {
        fault->probability = strtod(text + 2, &end);
        return end != text + 2 && !*end && fault->probability >= 0 && fault->probability <= 1;
    }
    fault->first = strtoull(text, &end, 10);
    if (end == text || fault->first == 0)
        return false;
    if (!*end)
        fault->last = fault->first;
    return !*end || !strcmp(end, "+");
}

static bool read_error(const char *text, Fault *fault) {
    char *end;
    long number = strtol(text, &end, 10);
    for (int i = 0; i < n_error_names; i++) {
        const char *name = error_names[i].name;
        bool named = !strcmp(text, name) || (!strncmp(name, "CUDA_ERROR_", 11) && !strcmp(text, name + 11));
        if (error_names[i].code != CUDA_SUCCESS &&
            (named || (end != text && !*end && number == (long)error_names[i].code))) {
            fault->error = error_names[i].code;
            return true;
        }
    }
    return false;
}

static bool read_option(const char *text, Fault *fault) {
    if (!strcmp(text, "sticky")) {
        fault->sticky = true;
        return true;
    }
    char rest;
    return sscanf(text, "device=%d%c", &fault->device, &rest) == 1 && fault->device >= 0;
}

static bool read_item(const char *text, size_t length, Fault *fault) {
    char item[160];
    if (length >= sizeof item)
        return false;
    memcpy(item, text, length);
    item[length] = 0;
    *fault = (Fault){.device = -1};
    char *rest = item;
    const char *target = strsep(&rest, ":"), *when = strsep(&rest, ":"), *error = strsep(&rest, ":");
    if (!error || !*target || strlen(target) >= sizeof fault->target || !read_when(when, fault) ||
        !read_error(error, fault))
        return false;
    strcpy(fault->target, target);
    for (const char *option; (option = strsep(&rest, ":"));)
        if (!read_option(option, fault))
            return false;
    return true;
}

size_t faults_set(const char *text) {
    Fault *list = NULL;
    size_t n = 0;
    for (const char *item = text; *item;) {
        size_t length = strcspn(item, ";");
        if (length) {
            list = realloc(list, (n + 1) * sizeof *list);
            if (!list || !read_item(item, length, &list[n])) {
                free(list);
                return (size_t)(item - text) + 1;
            }
            n++;
        }
        item += length + (item[length] == ';');
    }
    free(faults);
    faults = list;
    n_faults = n;
    return 0;
}

/* cuMemAlloc names cuMemAlloc_v2 and cuMemAlloc_v2_ptds too. */
static bool names_call(const char *target, const char *call) {
    size_t length = strlen(target);
    if (strncmp(target, call, length))
        return false;
    const char *rest = call + length;
    if (rest[0] == '_' && rest[1] == 'v')
        rest += 2 + strspn(rest + 2, "0123456789");
    return !*rest || !strcmp(rest, "_ptds") || !strcmp(rest, "_ptsz");
}

static bool strikes(Fault *fault, size_t lane, int device) {
    if (fault->device >= 0 && fault->device != device)
        return false;
    uint64_t count = ++fault->count;
    if (count < fault->first || count > fault->last)
        return false;
    return fault->probability >= 1 ||
           (double)seeded_number(lane, count, 1u << 30) < fault->probability * (double)(1u << 30);
}

CUresult fault_of_call(const char *name, int device, bool *sticky) {
    CUresult error = CUDA_SUCCESS;
    for (size_t i = 0; i < n_faults; i++)
        if (faults[i].target[0] != '@' && names_call(faults[i].target, name) && strikes(&faults[i], i, device) &&
            !error) {
            error = faults[i].error;
            *sticky = faults[i].sticky;
        }
    return error;
}

CUresult fault_of_work(const char *kind, int device) {
    CUresult error = CUDA_SUCCESS;
    for (size_t i = 0; i < n_faults; i++)
        if (faults[i].target[0] == '@' && !strcmp(faults[i].target + 1, kind) && strikes(&faults[i], i, device) &&
            !error)
            error = faults[i].error;
    return error;
}
