// What Nereid uses of libtorch, as plain C. Mirrored by hand in ffi.rs; `nt_api.size` guards against a mismatch.
//
// Conventions:
//  * A function that can fail returns an error text to be given back to `text_free`, or null when all went well. Its first
//    byte says what was thrown: R by the model's own `raise`, M for lack of memory by its type, E anything else.
//    No exception leaves the shim.
//  * A device is -1 for the host, else the index of a CUDA device.
//  * An element type is the number of c10::ScalarType.
//  * Handles are owned by the caller, who frees them; all handles may move between threads.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

struct nt_tensor;
struct nt_module;
struct nt_value;
// What one thread starts on a device, in order, with a mark in it. On the host there is nothing to wait for.
struct nt_stream;
struct nt_storages;

// Bytes that belong to somebody else; not terminated, may hold NUL.
struct nt_text {
  const char* data;
  size_t len;
};

// A tensor's description; pointers live as long as the handle.
struct nt_view {
  int32_t dtype;
  int32_t device;
  int64_t ndim;
  const int64_t* dims;
  const void* data;
  size_t bytes;
};

// One argument of forward(), or one element of what it returns.
struct nt_argument {
  nt_text name;      // empty if it has none
  nt_text type;      // as written in TorchScript, such as "Dict[str, Tensor]"
  nt_text fallback;  // the default's text; null data if there is none
  int32_t returned;  // 0 for an argument, 1 for a returned element
};

// One parameter or buffer.
struct nt_weight {
  nt_text name;
  const void* data;  // equal for tensors that share memory
  size_t bytes;      // of the whole storage
  int32_t dtype;
  int32_t device;
  int32_t buffer;  // 1 for a buffer, 0 for a parameter
};

// One value for forward(): a tensor, or strings where tensor is null.
struct nt_input {
  nt_text name;  // the argument's, or the key, when all inputs go into one dictionary
  nt_tensor* tensor;  // without a tensor and without strings: None
  const nt_text* strings;
  size_t strings_len;
};

// One value from forward(), containers flattened. The receiver owns `tensor`.
struct nt_output {
  nt_text name;       // the dictionary key or tuple field; empty if it has none
  nt_tensor* tensor;  // null for anything else
  const nt_text* strings;
  size_t strings_len;
  nt_text type;  // set if it is neither tensor nor strings: what it is
};

// How to run.
struct nt_run {
  int32_t device;
  int32_t inference_mode;      // 0: only without gradients
  int32_t optimized_executor;  // 0: run the graph as it is written
  int32_t as_dictionary;       // 1: forward() takes one Dict[str, Tensor]
  int32_t float_type;          // the element type that inputs of floating point are converted to; -1: none
  size_t in_order;             // so many inputs are given in order, the others by name
};

struct nt_api {
  size_t size;  // of this struct
  void (*text_free)(char*);

  // Once for each process, before anything else.
  char* (*configure)();
  // Once for each thread that runs models, first of all: `threads` cores for one operation; on a CUDA device a stream.
  char* (*thread_begin)(int32_t device, int32_t threads);
  // The stream of the calling thread, which has begun on that device.
  char* (*stream_of_thread)(int32_t device, nt_stream** out);
  // Moves the mark behind all that was started.
  char* (*stream_mark)(nt_stream*);
  // Whether all in front of the mark has ended.
  char* (*stream_passed)(const nt_stream*, int32_t* passed);
  // Waits for what is in front of the mark, or for everything.
  char* (*stream_wait)(const nt_stream*, int32_t to_mark);
  void (*stream_free)(nt_stream*);
  char* (*cuda_count)(int64_t* count);
  char* (*cuda_memory)(int32_t device, uint64_t* free, uint64_t* total);
  // The bytes that tensors have of what libtorch's allocator has of a device, and all that it has.
  char* (*cuda_allocated)(int32_t device, uint64_t* used, uint64_t* kept);
  char* (*cuda_empty_cache)();

  // A tensor over memory of the caller, given back by `release(context)` when the last use of it ends.
  char* (*tensor_over)(int32_t dtype, const int64_t* dims, size_t ndim, const void* data, void* context,
                       void (*release)(void*), nt_tensor** out);
  // Uninitialised host memory, page-locked if asked for; `data` is where to write.
  char* (*tensor_empty)(int32_t dtype, const int64_t* dims, size_t ndim, int32_t pinned, nt_tensor** out, void** data);
  // A tensor over the beginning of a buffer's memory, not written to; `data` is where to write. Null if the buffer is too
  // small, or others than this handle still hold its memory.
  char* (*tensor_reuse)(const nt_tensor* buffer, int32_t dtype, const int64_t* dims, size_t ndim, nt_tensor** out,
                        void** data);
  char* (*tensor_to)(const nt_tensor*, int32_t device, nt_tensor** out);
  // The same elements, dense and in host memory; the same memory where it is that already. With `later`, those of a device
  // go to page-locked memory and are there when the thread's stream was waited for.
  char* (*tensor_host)(const nt_tensor*, int32_t copy, int32_t later, nt_tensor** out);
  // The same elements, dense, where they are; never the same memory with `copy`, and with `own` none of which others have a
  // part. On a device they may come later.
  char* (*tensor_keep)(const nt_tensor*, int32_t copy, int32_t own, nt_tensor** out);
  // Ranges of a dense tensor's elements, as views or, with `own`, each in its own memory: `ranges` are pairs of the first
  // and how many. All of `out` is written, or nothing.
  char* (*tensor_parts)(const nt_tensor*, const int64_t* ranges, size_t count, int32_t own, nt_tensor** out);
  // Dense tensors of one type one after the other on `device`, in this shape; a view of the only one that is there
  // already, unless a copy is asked for.
  char* (*tensor_join)(const nt_tensor* const* parts, size_t count, int32_t device, int32_t copy, const int64_t* dims,
                       size_t ndim, nt_tensor** out);
  // The same elements in another element type; on a device they may come later.
  char* (*tensor_cast)(const nt_tensor*, int32_t dtype, nt_tensor** out);
  char* (*tensor_view)(const nt_tensor*, nt_view* out);
  void (*tensor_free)(nt_tensor*);

  char* (*module_new)(nt_text name, nt_module** out);
  char* (*module_register)(nt_module*, nt_text name, const nt_tensor*, int32_t buffer);  // 2: a list of it, as an attribute.
  char* (*module_define)(nt_module*, nt_text source);
  char* (*module_save)(const nt_module*, nt_text path);
  // Weights go to `device`; evaluation mode is on.
  char* (*module_load)(nt_text path, int32_t device, nt_module** out);
  // Deep: nothing is shared.
  char* (*module_copy)(const nt_module*, nt_module** out);
  char* (*module_freeze)(const nt_module*, nt_module** out);
  // `layers`: how many linear layers and convolutions oneDNN does then.
  char* (*module_optimize)(const nt_module*, nt_module** out, uint64_t* layers);
  // Converts parameters, buffers and constants of floating point, and nothing else, in place.
  char* (*module_convert)(nt_module*, int32_t dtype);
  // Frozen, its linear layers with weights of int8: how many these are, and the bytes of all weights together.
  char* (*module_quantize)(const nt_module*, nt_module** out, uint64_t* layers, uint64_t* bytes);
  char* (*module_schema)(const nt_module*, void* context, void (*each)(void*, const nt_argument*));
  char* (*module_weights)(const nt_module*, void* context, void (*each)(void*, const nt_weight*));
  // Whether forward() may write into its inputs, and into the module's own attributes. Errs on the side of yes.
  char* (*module_effects)(const nt_module*, int32_t* inputs, int32_t* state);
  void (*module_free)(nt_module*);

  // The memory of a module's tensors on a device, as far as it can be moved, and its bytes; keeps the module. None, and
  // null, if forward() may return such memory.
  char* (*storages_of)(const nt_module*, int32_t device, nt_storages** out, uint64_t* bytes);
  // Gives the memory back after `write` was given all of it in order; without `write`, after copying it to the host. What
  // it has called fails by anything but 0. Nobody may use the module until `storages_in`.
  char* (*storages_out)(nt_storages*, void* context, int32_t (*write)(void*, void*, uint64_t));
  // Brings it back, by `read` in the same order, or from the host.
  char* (*storages_in)(nt_storages*, void* context, int32_t (*read)(void*, void*, uint64_t));
  void (*storages_free)(nt_storages*);

  // Runs forward(); on a device its results may come later.
  char* (*run)(const nt_module*, const nt_run*, const nt_input*, size_t inputs, nt_value** out);
  // Flattens containers, two levels deep.
  char* (*value_outputs)(const nt_value*, void* context, void (*each)(void*, const nt_output*));
  // The elements of a list, each the receiver's to free; fails for anything else.
  char* (*value_items)(const nt_value*, void* context, void (*each)(void*, nt_value*));
  void (*value_free)(nt_value*);
};

// The one exported symbol.
__attribute__((visibility("default"))) const nt_api* nereid_torch();
}
