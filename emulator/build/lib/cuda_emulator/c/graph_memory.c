/* Memory that graphs allocate. Its address is fixed when the node is made and belongs to the node, the executable
 * graphs made of it and their launches (`owners`); the memory behind it is there (`asleep` is false) from the turn of
 * the allocating node until it is freed, by a node or by cuMemFreeAsync. Used at another time it is not there: the
 * record stays in the tree, asleep. `taken` says the same in the order of calls: from the call that launches the graph
 * to the call that frees. */
#include "call.h"
#include "graph.h"
#include "report.h"

enum { GRAIN = 512 };

static cuuint64_t most_used[MAX_DEVICES], most_reserved[MAX_DEVICES];

static Allocation *find(CUdeviceptr address) {
    Allocation *allocation = allocation_at(address);
    return allocation && allocation->of_graph && allocation->address == address ? allocation : NULL;
}

bool is_graph_memory(CUdeviceptr address) {
    return find(address);
}

CUresult graph_memory_new(CUDA_MEM_ALLOC_NODE_PARAMS_v2 *params, Context *context) {
    const CUmemPoolProps *properties = &params->poolProps;
    bool device = properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE && device_at(properties->location.id);
    if (!device || !params->bytesize || properties->handleTypes)
        return CUDA_ERROR_INVALID_VALUE;
    uint32_t access = 0;
    for (size_t i = 0; i < params->accessDescCount; i++)
        if (device_at(params->accessDescs[i].location.id))
            access |= 1u << params->accessDescs[i].location.id;
    Allocation *allocation =
        allocation_new(PLACE_DEVICE, &devices[properties->location.id], params->bytesize, fresh_pages);
    if (!allocation)
        return CUDA_ERROR_OUT_OF_MEMORY;
    allocation_paint(allocation);
    allocation->context = context;
    allocation->of_graph = true;
    allocation->asleep = true;
    allocation->owners = 1;
    allocation->access = access;
    params->dptr = allocation->address;
    return CUDA_SUCCESS;
}

void graph_memory_keep(CUdeviceptr address) {
    Allocation *allocation = find(address);
    if (allocation)
        allocation->owners++;
}

void graph_memory_drop(CUdeviceptr address) {
    Allocation *allocation = find(address);
    if (allocation && --allocation->owners == 0 && allocation->asleep)
        allocation_end(allocation);
}

typedef struct Sum {
    const Device *device;
    cuuint64_t used, reserved;
} Sum;

static void add(Allocation *allocation, void *data) {
    Sum *sum = data;
    if (!allocation->of_graph || allocation->device != sum->device)
        return;
    sum->used += allocation->taken ? allocation->charged : 0;
    sum->reserved += allocation->charged;
}

static Sum sum_of(const Device *device) {
    Sum sum = {.device = device};
    allocations_visit(add, &sum);
    return sum;
}

CUresult graph_memory_launch(CUdeviceptr address, bool free_first) {
    Allocation *allocation = find(address);
    if (!allocation || (allocation->taken && !free_first))
        return CUDA_ERROR_INVALID_VALUE;
    if (!allocation->charged) {
        size_t bytes = round_up(allocation->size, GRAIN);
        CUresult result = device_charge(allocation->device, bytes);
        if (result)
            return result;
        allocation->charged = bytes;
    }
    allocation->taken = true;
    allocation->leaving = false; /* its free is submitted, but this launch comes behind it */
    Sum sum = sum_of(allocation->device);
    int ordinal = allocation->device->ordinal;
    most_used[ordinal] = sum.used > most_used[ordinal] ? sum.used : most_used[ordinal];
    most_reserved[ordinal] = sum.reserved > most_reserved[ordinal] ? sum.reserved : most_reserved[ordinal];
    return CUDA_SUCCESS;
}

void graph_memory_will_be_freed(CUdeviceptr address) {
    Allocation *allocation = find(address);
    if (allocation)
        allocation->taken = false;
}

CUresult graph_memory_wake(CUdeviceptr address) {
    Allocation *allocation = find(address);
    if (!allocation)
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    allocation_paint(allocation);
    allocation->asleep = false;
    return CUDA_SUCCESS;
}

CUresult graph_memory_sleep(CUdeviceptr address) {
    Allocation *allocation = find(address);
    if (!allocation || allocation->asleep) {
        hazard("bad free", "a graph frees memory at 0x%llx that is not allocated at this point", address);
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    allocation_release(allocation);
    return CUDA_SUCCESS;
}

CUresult emulated_cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attribute, void *value) {
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    Sum sum = sum_of(&devices[device]);
    switch (attribute) {
    case CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT:
        *(cuuint64_t *)value = sum.used;
        return CUDA_SUCCESS;
    case CU_GRAPH_MEM_ATTR_USED_MEM_HIGH:
        *(cuuint64_t *)value = most_used[device];
        return CUDA_SUCCESS;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT:
        *(cuuint64_t *)value = sum.reserved;
        return CUDA_SUCCESS;
    case CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH:
        *(cuuint64_t *)value = most_reserved[device];
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult emulated_cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attribute, void *value) {
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    bool high = attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH || attribute == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
    if (!value || !high || *(cuuint64_t *)value)
        return CUDA_ERROR_INVALID_VALUE;
    Sum sum = sum_of(&devices[device]);
    if (attribute == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH)
        most_used[device] = sum.used;
    else
        most_reserved[device] = sum.reserved;
    return CUDA_SUCCESS;
}

static void trim(Allocation *allocation, void *data) {
    if (!allocation->of_graph || allocation->device != data || allocation->taken || !allocation->asleep)
        return;
    device_refund(allocation->device, allocation->charged);
    allocation->charged = 0;
}

CUresult emulated_cuDeviceGraphMemTrim(CUdevice device) {
    if (!device_at(device))
        return CUDA_ERROR_INVALID_DEVICE;
    allocations_visit(trim, &devices[device]);
    return CUDA_SUCCESS;
}
