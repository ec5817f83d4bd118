// The C++ side of shim_aoti.h.
#include "shim_aoti.h"
#include "shim_base.h"

#include <memory>
#include <string>
#include <vector>

#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_runner/model_container_runner_cpu.h>

using torch::inductor::AOTIModelContainerRunnerCpu;

struct nt_package {
  // It locks for itself.
  std::unique_ptr<AOTIModelContainerRunnerCpu> runner;
};

namespace {

char* package_load(nt_text path, size_t runners, nt_package** out) {
  return guarded([&] {
    auto runner = std::make_unique<AOTIModelContainerRunnerCpu>(std::string(path.data, path.len), runners);
    *out = new nt_package{std::move(runner)};
  });
}

char* package_run(const nt_package* self, const nt_tensor* const* inputs, size_t count, void* context,
                  void (*each)(void*, nt_tensor*)) {
  return guarded([&] {
    const c10::InferenceMode guard;
    std::vector<at::Tensor> given;
    given.reserve(count);
    for (size_t i = 0; i < count; ++i) given.push_back(inputs[i]->tensor);
    std::vector<std::unique_ptr<nt_tensor>> outputs;
    for (auto& output : self->runner->run(given)) {
      // Memory that no allocator of libtorch's gave is the package's or the caller's, and may go before the output does.
      const bool own = output.has_storage() && output.storage().allocator() != nullptr;
      outputs.push_back(std::make_unique<nt_tensor>(nt_tensor{own ? std::move(output) : output.clone()}));
    }
    for (auto& output : outputs) each(context, output.release());
  });
}

void package_free(nt_package* self) { delete self; }

}  // namespace

const nt_aoti_api* nereid_torch_aoti() {
  static const nt_aoti_api api{sizeof(nt_aoti_api), package_load, package_run, package_free};
  return &api;
}
