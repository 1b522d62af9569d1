// net.h - what mock.c and load.c share: clock, growing buffer, header look-up, sockets that do not delay.
// Each program includes it once; neither needs anything but libc and Linux (epoll).
#ifndef BENCH_NET_H
#define BENCH_NET_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  exit(2);
}

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

// The kernel rounds a sleep by up to 50 us unless told otherwise; here a late wake-up would show as latency.
static inline void ask_for_exact_timers(void) { prctl(PR_SET_TIMERSLACK, 1ul); }

static inline void *xrealloc(void *old, size_t size) {
  void *p = realloc(old, size);
  if (!p) die("out of memory");
  return p;
}

struct buffer {
  char *data;
  size_t len, cap;
};

static inline void buffer_reserve(struct buffer *b, size_t room) {
  if (b->cap - b->len >= room) return;
  b->cap = (b->len + room) * 2;
  b->data = xrealloc(b->data, b->cap);
}

static inline void buffer_append(struct buffer *b, const char *bytes, size_t len) {
  buffer_reserve(b, len);
  memcpy(b->data + b->len, bytes, len);
  b->len += len;
}

// Drops the first `len` bytes and keeps the rest.
static inline void buffer_consume(struct buffer *b, size_t len) {
  b->len -= len;
  memmove(b->data, b->data + len, b->len);
}

// The value of header `name` in the lines from `head` up to `end`, or NULL. The value ends at "\r\n".
static inline const char *find_header(const char *head, const char *end, const char *name) {
  size_t name_len = strlen(name);
  for (const char *line = head; line < end;) {
    const char *newline = memchr(line, '\n', (size_t)(end - line));
    if (!newline) newline = end;
    if ((size_t)(newline - line) > name_len && !strncasecmp(line, name, name_len) && line[name_len] == ':') {
      for (line += name_len + 1; line < newline && *line == ' '; line++) {}
      return line;
    }
    line = newline + 1;
  }
  return NULL;
}

static inline bool header_is(const char *head, const char *end, const char *name, const char *value) {
  const char *found = find_header(head, end, name);
  return found && !strncasecmp(found, value, strlen(value));
}

static inline void no_delay(int fd) {
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline struct sockaddr_in loopback(int port) {
  return (struct sockaddr_in){.sin_family = AF_INET,
                              .sin_port = htons((uint16_t)port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

// epoll_wait that wakes at `deadline` (ns, monotonic), or never for UINT64_MAX.
static inline int wait_events(int epoll, struct epoll_event *events, int count, uint64_t deadline) {
  if (deadline == UINT64_MAX) return epoll_wait(epoll, events, count, -1);
  uint64_t t = now_ns(), left = deadline > t ? deadline - t : 0;
  struct timespec timeout = {(time_t)(left / NS_PER_S), (long)(left % NS_PER_S)};
  return epoll_pwait2(epoll, events, count, &timeout, NULL);
}

#endif
