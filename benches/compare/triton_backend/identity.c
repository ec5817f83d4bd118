/*
 * A backend for Triton, in C: each output OUTPUTn is a copy of the input INPUTn.
 *
 * PyPI's Triton has the python backend only, whose processes and copies would be measured instead of the server. This is
 * the least that a backend in C does: get the request's buffers, ask for the response's, copy, send, report the
 * statistics, release. What it declares of the backend interface is as of version 1.0 and later; Triton's own header,
 * triton/core/tritonbackend.h, explains it.
 */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef struct TRITONBACKEND_Request TRITONBACKEND_Request;
typedef struct TRITONBACKEND_Response TRITONBACKEND_Response;
typedef struct TRITONBACKEND_Input TRITONBACKEND_Input;
typedef struct TRITONBACKEND_Output TRITONBACKEND_Output;
typedef struct TRITONBACKEND_ModelInstance TRITONBACKEND_ModelInstance;

enum { MEMORY_CPU = 0, RESPONSE_COMPLETE_FINAL = 1, REQUEST_RELEASE_ALL = 1, ERROR_UNSUPPORTED = 5, NAME_MAX_BYTES = 64 };

TRITONSERVER_Error *TRITONSERVER_ErrorNew(int code, const char *message);
TRITONSERVER_Error *TRITONBACKEND_RequestInputCount(TRITONBACKEND_Request *, uint32_t *count);
TRITONSERVER_Error *TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request *, uint32_t index, TRITONBACKEND_Input **);
TRITONSERVER_Error *TRITONBACKEND_InputProperties(TRITONBACKEND_Input *, const char **name, int *data_type,
                                                  const int64_t **shape, uint32_t *dims, uint64_t *bytes, uint32_t *buffers);
TRITONSERVER_Error *TRITONBACKEND_InputBuffer(TRITONBACKEND_Input *, uint32_t index, const void **, uint64_t *bytes,
                                              int *memory_type, int64_t *memory_type_id);
TRITONSERVER_Error *TRITONBACKEND_ResponseNew(TRITONBACKEND_Response **, TRITONBACKEND_Request *);
TRITONSERVER_Error *TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response *, TRITONBACKEND_Output **, const char *name,
                                                 int data_type, const int64_t *shape, uint32_t dims);
TRITONSERVER_Error *TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output *, void **, uint64_t bytes, int *memory_type,
                                               int64_t *memory_type_id);
TRITONSERVER_Error *TRITONBACKEND_ResponseSend(TRITONBACKEND_Response *, uint32_t flags, TRITONSERVER_Error *);
TRITONSERVER_Error *TRITONBACKEND_RequestRelease(TRITONBACKEND_Request *, uint32_t flags);
TRITONSERVER_Error *TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance *, TRITONBACKEND_Request *,
                                                                bool success, uint64_t begin_ns, uint64_t compute_begin_ns,
                                                                uint64_t compute_end_ns, uint64_t end_ns);
TRITONSERVER_Error *TRITONBACKEND_ModelInstanceReportBatchStatistics(TRITONBACKEND_ModelInstance *, uint64_t rows,
                                                                     uint64_t begin_ns, uint64_t compute_begin_ns,
                                                                     uint64_t compute_end_ns, uint64_t end_ns);

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#define CHECKED(call)                      \
    do {                                   \
        TRITONSERVER_Error *error = (call); \
        if (error) return error;           \
    } while (0)

static TRITONSERVER_Error *copy(TRITONBACKEND_Input *input, TRITONBACKEND_Response *response) {
    const char *name;
    const int64_t *shape;
    uint32_t dims, buffers;
    uint64_t bytes;
    int data_type;
    CHECKED(TRITONBACKEND_InputProperties(input, &name, &data_type, &shape, &dims, &bytes, &buffers));
    char output_name[NAME_MAX_BYTES] = "OUTPUT";
    if (strncmp(name, "INPUT", 5) != 0 || strlen(name) + 2 > sizeof output_name)
        return TRITONSERVER_ErrorNew(ERROR_UNSUPPORTED, "inputs must be called INPUT0, INPUT1, ...");
    strcat(output_name, name + 5);

    TRITONBACKEND_Output *output;
    CHECKED(TRITONBACKEND_ResponseOutput(response, &output, output_name, data_type, shape, dims));
    int memory_type = MEMORY_CPU;
    int64_t memory_type_id = 0;
    char *to;
    CHECKED(TRITONBACKEND_OutputBuffer(output, (void **)&to, bytes, &memory_type, &memory_type_id));
    for (uint32_t index = 0; index < buffers; index++) {
        const void *from;
        uint64_t part;
        CHECKED(TRITONBACKEND_InputBuffer(input, index, &from, &part, &memory_type, &memory_type_id));
        memcpy(to, from, part);
        to += part;
    }
    return NULL;
}

static TRITONSERVER_Error *copies(TRITONBACKEND_Request *request, TRITONBACKEND_Response *response) {
    uint32_t inputs;
    CHECKED(TRITONBACKEND_RequestInputCount(request, &inputs));
    for (uint32_t index = 0; index < inputs; index++) {
        TRITONBACKEND_Input *input;
        CHECKED(TRITONBACKEND_RequestInputByIndex(request, index, &input));
        CHECKED(copy(input, response));
    }
    return NULL;
}

/* Each request counts as one row, as those of the models that are compared are. */
TRITONSERVER_Error *TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance *instance,
                                                       TRITONBACKEND_Request **requests, uint32_t count) {
    uint64_t batch_begin = now_ns(), end = batch_begin;
    for (uint32_t index = 0; index < count; index++) {
        uint64_t begin = end;
        TRITONBACKEND_Response *response;
        CHECKED(TRITONBACKEND_ResponseNew(&response, requests[index]));
        TRITONSERVER_Error *failure = copies(requests[index], response);
        bool success = failure == NULL;
        CHECKED(TRITONBACKEND_ResponseSend(response, RESPONSE_COMPLETE_FINAL, failure));
        end = now_ns();
        CHECKED(TRITONBACKEND_ModelInstanceReportStatistics(instance, requests[index], success, begin, begin, end, end));
        CHECKED(TRITONBACKEND_RequestRelease(requests[index], REQUEST_RELEASE_ALL));
    }
    return TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, count, batch_begin, batch_begin, end, end);
}
