#include "base/log.h"

#include <atomic>
#include <cstdio>
#include <ctime>

#include <sys/time.h>

namespace dlcore {
namespace {

const char* Name(LogLevel level) {
  switch (level) {
    case LogLevel::kInfo:
      return "INFO";
    case LogLevel::kWarning:
      return "WARNING";
    case LogLevel::kError:
      return "ERROR";
  }
  return "?";
}

void WriteToStderr(LogLevel level, std::string_view message) {
  timeval now{};
  gettimeofday(&now, nullptr);
  tm local{};
  localtime_r(&now.tv_sec, &local);
  char stamp[32];
  std::strftime(stamp, sizeof(stamp), "%m-%d %H:%M:%S", &local);
  std::fprintf(stderr, "%s %s.%03d dlcore] %.*s\n", Name(level), stamp,
               static_cast<int>(now.tv_usec / 1000), static_cast<int>(message.size()),
               message.data());
}

std::atomic<LogSink> g_sink{&WriteToStderr};

}  // namespace

void Log(LogLevel level, std::string_view message) { g_sink.load()(level, message); }

LogSink SetLogSink(LogSink sink) {
  return g_sink.exchange(sink == nullptr ? &WriteToStderr : sink);
}

}  // namespace dlcore
