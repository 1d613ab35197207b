#include "transport/dlslime_library.h"

#include <dlfcn.h>

namespace dlcore {
namespace {

Status Load(const DlslimePlugin** out) {
  void* handle = dlopen(kDlslimePluginFile, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    return Status::Unavailable(
        std::string("dlslime: ") + (reason != nullptr ? reason : "cannot be loaded") +
        " (build dlcore where the wheel is: pip install 'dlcore[dlslime]', libnuma-dev)");
  }
  const auto* plugin = static_cast<const DlslimePlugin*>(dlsym(handle, "dlcore_dlslime_plugin"));
  if (plugin == nullptr || plugin->version != kDlslimePluginVersion) {
    return Status::Unavailable(std::string("dlslime: ") + kDlslimePluginFile +
                               " is of another build of dlcore");
  }
  *out = plugin;
  return plugin->check();
}

}  // namespace

Status LoadDlslime(const DlslimePlugin** out) {
  static const DlslimePlugin* plugin = nullptr;
  static const Status status = Load(&plugin);
  *out = plugin;
  return status;
}

}  // namespace dlcore
