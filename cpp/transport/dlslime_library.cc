#include "transport/dlslime_library.h"

#include <dlfcn.h>

namespace dlcore {
namespace {

Status Load(const DlslimePlugin** out) {
  if (Status s = CheckDlslimeBuilt(); !s.ok()) return s;
  void* handle = dlopen(kDlslimePluginFile, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    return Status::Unavailable(std::string("dlslime: ") +
                               (reason != nullptr ? reason : "cannot be loaded"));
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

Status CheckDlslimeBuilt() {
#ifdef DLCORE_DLSLIME
  return Status::Ok();
#else
  return Status::Unavailable(
      "dlslime: left out of this build of dlcore; pip install the dlslime release that dlcore's "
      "extra 'dlslime' names, apt install libibverbs-dev libnuma-dev, and build dlcore again");
#endif
}

Status LoadDlslime(const DlslimePlugin** out) {
  static const DlslimePlugin* plugin = nullptr;
  static const Status status = Load(&plugin);
  *out = plugin;
  return status;
}

}  // namespace dlcore
