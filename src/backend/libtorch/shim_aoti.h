// The part of the shim that runs packages of AOTInductor, by the conventions of shim.h. Mirrored by hand in aoti/ffi.rs.
#pragma once
#include "shim.h"

extern "C" {

struct nt_package;

struct nt_aoti_api {
  size_t size;  // of this struct

  // Loads a package's library, for at most so many executions at once. The file is not needed afterwards.
  char* (*package_load)(nt_text path, size_t runners, nt_package** out);
  // Runs it. Checks neither types nor shapes, and nor does the package. Each output is the receiver's to free, and in
  // memory of its own.
  char* (*package_run)(const nt_package*, const nt_tensor* const* inputs, size_t count, void* context,
                       void (*each)(void*, nt_tensor*));
  void (*package_free)(nt_package*);
};

__attribute__((visibility("default"))) const nt_aoti_api* nereid_torch_aoti();
}
