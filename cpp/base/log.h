#pragma once

#include <cstdint>
#include <string_view>

namespace dlcore {

enum class LogLevel : uint8_t { kInfo, kWarning, kError };

// Receives one message, without a trailing newline. May be called by any thread.
using LogSink = void (*)(LogLevel level, std::string_view message);

// Writes one message to the sink: by default a line on stderr with the time and
// the level. Never called in the step path.
// Thread safety: any thread.
void Log(LogLevel level, std::string_view message);

// Replaces the sink and returns the one before; nullptr restores stderr.
LogSink SetLogSink(LogSink sink);

}  // namespace dlcore
