// mock.c - a fast, fixed provider for the benchmark: the Anthropic Messages API as far as a relay needs it.
// One thread, epoll, HTTP/1.1 keep-alive, loopback only. It judges nothing: credentials and bodies are not checked.
//
//   mock PORT
//
//   POST /v1/messages               JSON, or SSE when the body says "stream": true
//   POST /v1/messages/count_tokens  JSON
//   GET  /stats                     what was received and reported, for comparison with a ledger; not counted itself
//
// A prompt may carry   [[mock ttfb_ms=5 delay_ms=20 n=50 status=429]]   and so reaches the mock through any relay:
//   ttfb_ms   wait before the first byte of the answer           [0]
//   delay_ms  wait before each text delta of a stream            [0]
//   n         text deltas in a stream, at most 4096              [50]
//   status    answer with this error instead                     [200]
#define _GNU_SOURCE
#include "net.h"

#include <signal.h>

enum { INPUT_TOKENS = 215, JSON_OUTPUT_TOKENS = 42, DEFAULT_DELTAS = 50, MAX_DELTAS = 4096 };
enum { READ_ROOM = 16384, MAX_REQUEST = 64 << 20, EVENTS = 512 };

// The steps of a stream: its head, block start, `deltas` text deltas, its tail.
enum { STEP_HEAD, STEP_BLOCK, STEP_FIRST_DELTA };

enum answer { ANSWER_MESSAGE, ANSWER_STREAM, ANSWER_ERROR, ANSWER_COUNT };

struct conn {
  int fd;
  bool busy;  // an answer is under way; pipelined requests wait in `in`
  bool keep_alive, wants_write, sent_continue;
  struct buffer in, out;  // `out` holds what the kernel has not taken yet, from `out_taken` on
  size_t out_taken;

  enum answer answer;
  bool begun;  // the wait before the first byte is over
  int status, deltas, step;
  uint64_t delay, due;  // ns
  int heap_at;          // place in `timers`, -1 if not waiting
};

static struct {
  uint64_t requests, streams, count_tokens, errors, aborted, connections, input_tokens, output_tokens;
} stats;

static int epoll;

// ---- timers: a binary heap, soonest first

static struct conn **timers;
static int timers_len, timers_cap;

static void heap_put(struct conn *c, int at) {
  timers[at] = c;
  c->heap_at = at;
}

static void heap_sift_up(struct conn *c, int at) {
  for (; at > 0 && timers[(at - 1) / 2]->due > c->due; at = (at - 1) / 2) heap_put(timers[(at - 1) / 2], at);
  heap_put(c, at);
}

static void heap_sift_down(struct conn *c, int at) {
  for (;;) {
    int child = 2 * at + 1;
    if (child >= timers_len) break;
    if (child + 1 < timers_len && timers[child + 1]->due < timers[child]->due) child++;
    if (timers[child]->due >= c->due) break;
    heap_put(timers[child], at);
    at = child;
  }
  heap_put(c, at);
}

static void timer_start(struct conn *c) {
  if (timers_len == timers_cap) {
    timers_cap = timers_cap ? timers_cap * 2 : 1024;
    timers = xrealloc(timers, (size_t)timers_cap * sizeof *timers);
  }
  heap_sift_up(c, timers_len++);
}

static void timer_cancel(struct conn *c) {
  int at = c->heap_at;
  if (at < 0) return;
  c->heap_at = -1;
  struct conn *last = timers[--timers_len];
  if (last == c) return;
  heap_sift_down(last, at);
  heap_sift_up(last, last->heap_at);
}

// ---- output

static bool all_taken(const struct conn *c) { return c->out_taken == c->out.len; }

// Sends what the kernel takes and keeps the rest. False: the connection is gone.
static bool emit(struct conn *c, const char *bytes, size_t len) {
  if (all_taken(c)) {
    ssize_t sent = send(c->fd, bytes, len, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return false;
    if (sent > 0) bytes += sent, len -= (size_t)sent;
    c->out.len = c->out_taken = 0;
  }
  if (len) buffer_append(&c->out, bytes, len);
  return true;
}

static bool flush(struct conn *c) {
  while (!all_taken(c)) {
    ssize_t sent = send(c->fd, c->out.data + c->out_taken, c->out.len - c->out_taken, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN;
    c->out_taken += (size_t)sent;
  }
  return true;
}

static void watch(struct conn *c) {
  bool wants_write = !all_taken(c);
  if (wants_write == c->wants_write) return;
  c->wants_write = wants_write;
  struct epoll_event e = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0u), .data.ptr = c};
  epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
}

// ---- answers

#define DELTA \
  "event: content_block_delta\n" \
  "data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"some words \"}}\n\n"

static char delta_chunk[256];  // DELTA, chunk-encoded once
static size_t delta_chunk_len;

// Appends one HTTP chunk to `out` and returns its length.
static size_t put_chunk(char *out, const char *text) {
  int n = sprintf(out, "%zx\r\n%s\r\n", strlen(text), text);
  return (size_t)n;
}

// Headers that every answer of the API has: an identity, and limits far away, so that no relay rests its account.
static const char *common_headers(void) {
  static char text[640];
  static time_t made;
  time_t t = time(NULL);
  if (t != made) {
    char reset[32];
    time_t in_a_minute = t + 60;
    strftime(reset, sizeof reset, "%Y-%m-%dT%H:%M:%SZ", gmtime(&in_a_minute));
    snprintf(text, sizeof text,
             "anthropic-organization-id: 00000000-0000-4000-8000-000000000000\r\n"
             "anthropic-ratelimit-requests-limit: 1000000\r\n"
             "anthropic-ratelimit-requests-remaining: 999000\r\n"
             "anthropic-ratelimit-requests-reset: %s\r\n"
             "anthropic-ratelimit-tokens-limit: 1000000000\r\n"
             "anthropic-ratelimit-tokens-remaining: 999000000\r\n"
             "anthropic-ratelimit-tokens-reset: %s\r\n",
             reset, reset);
    made = t;
  }
  return text;
}

static unsigned long long request_number(void) { return (unsigned long long)stats.requests; }

static bool send_json(struct conn *c, int status, const char *body) {
  char text[4096];
  int n = snprintf(text, sizeof text,
                   "HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n%s"
                   "request-id: req_mock%016llx\r\n%s%s\r\n%s",
                   status, status == 200 ? "OK" : "Error", strlen(body), common_headers(), request_number(),
                   status == 429 ? "retry-after: 1\r\n" : "", c->keep_alive ? "" : "connection: close\r\n", body);
  c->busy = false;
  return emit(c, text, (size_t)n);
}

static bool send_message(struct conn *c) {
  char body[1024];
  snprintf(body, sizeof body,
           "{\"id\":\"msg_mock%016llx\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude-sonnet-4-5-20250929\","
           "\"content\":[{\"type\":\"text\",\"text\":\"A fixed answer, about as long as a short reply to a question, so that"
           " whoever parses, counts or copies the body has an ordinary amount of work to do for it.\"}],"
           "\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{\"input_tokens\":%d,"
           "\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,\"cache_creation\":"
           "{\"ephemeral_5m_input_tokens\":0,\"ephemeral_1h_input_tokens\":0},\"output_tokens\":%d,"
           "\"service_tier\":\"standard\"}}",
           request_number(), INPUT_TOKENS, JSON_OUTPUT_TOKENS);
  stats.input_tokens += INPUT_TOKENS;
  stats.output_tokens += JSON_OUTPUT_TOKENS;
  return send_json(c, 200, body);
}

static const char *error_type(int status) {
  switch (status) {
    case 400: return "invalid_request_error";
    case 401: return "authentication_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    case 529: return "overloaded_error";
    default: return "api_error";
  }
}

static bool send_error(struct conn *c, int status) {
  char body[256];
  snprintf(body, sizeof body,
           "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":\"mock error %d\"},\"request_id\":\"req_mock%016llx\"}",
           error_type(status), status, request_number());
  return send_json(c, status, body);
}

static bool send_stream_head(struct conn *c) {
  char event[640], text[2048];
  snprintf(event, sizeof event,
           "event: message_start\n"
           "data: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_mock%016llx\",\"type\":\"message\","
           "\"role\":\"assistant\",\"model\":\"claude-sonnet-4-5-20250929\",\"content\":[],\"stop_reason\":null,"
           "\"stop_sequence\":null,\"usage\":{\"input_tokens\":%d,\"cache_creation_input_tokens\":0,"
           "\"cache_read_input_tokens\":0,\"output_tokens\":1,\"service_tier\":\"standard\"}}}\n\n",
           request_number(), INPUT_TOKENS);
  int n = snprintf(text, sizeof text,
                   "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
                   "transfer-encoding: chunked\r\n%srequest-id: req_mock%016llx\r\n%s\r\n",
                   common_headers(), request_number(), c->keep_alive ? "" : "connection: close\r\n");
  return emit(c, text, (size_t)n + put_chunk(text + n, event));
}

static bool send_block_start(struct conn *c) {
  char text[512];
  size_t n = put_chunk(text,
                       "event: content_block_start\n"
                       "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n");
  n += put_chunk(text + n, "event: ping\ndata: {\"type\":\"ping\"}\n\n");
  return emit(c, text, n);
}

static bool send_stream_tail(struct conn *c) {
  char event[320], text[1024];
  snprintf(event, sizeof event,
           "event: message_delta\n"
           "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},"
           "\"usage\":{\"input_tokens\":%d,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,"
           "\"output_tokens\":%d}}\n\n",
           INPUT_TOKENS, c->deltas);
  size_t n = put_chunk(text, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n");
  n += put_chunk(text + n, event);
  n += put_chunk(text + n, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
  n += (size_t)sprintf(text + n, "0\r\n\r\n");
  stats.input_tokens += INPUT_TOKENS;
  stats.output_tokens += (uint64_t)c->deltas;
  c->busy = false;
  return emit(c, text, n);
}

static bool is_delta(const struct conn *c) {
  return c->step >= STEP_FIRST_DELTA && c->step < STEP_FIRST_DELTA + c->deltas;
}

// Sends step after step, each by itself, until the stream waits for its time, for the peer to read, or is over.
static bool stream_on(struct conn *c) {
  while (c->busy && all_taken(c)) {
    if (is_delta(c) && c->due > now_ns()) {
      if (c->heap_at < 0) timer_start(c);
      return true;
    }
    bool alive = c->step == STEP_HEAD    ? send_stream_head(c)
                 : c->step == STEP_BLOCK ? send_block_start(c)
                 : is_delta(c)           ? emit(c, delta_chunk, delta_chunk_len)
                                         : send_stream_tail(c);
    if (!alive) return false;
    if (c->step == STEP_BLOCK) c->due = now_ns();  // the deltas' times are counted from here: they do not drift
    if (c->step++ >= STEP_BLOCK) c->due += c->delay;
  }
  return true;
}

static bool begin_answer(struct conn *c) {
  c->begun = true;
  switch (c->answer) {
    case ANSWER_STREAM: stats.streams++; return stream_on(c);
    case ANSWER_ERROR: stats.errors++; return send_error(c, c->status);
    case ANSWER_COUNT: stats.count_tokens++; return send_json(c, 200, "{\"input_tokens\":215}");
    default: return send_message(c);
  }
}

static bool send_stats(struct conn *c) {
  char body[512];
  snprintf(body, sizeof body,
           "{\"requests\":%llu,\"streams\":%llu,\"count_tokens\":%llu,\"errors\":%llu,\"aborted\":%llu,"
           "\"connections\":%llu,\"input_tokens\":%llu,\"output_tokens\":%llu}\n",
           (unsigned long long)stats.requests, (unsigned long long)stats.streams, (unsigned long long)stats.count_tokens,
           (unsigned long long)stats.errors, (unsigned long long)stats.aborted, (unsigned long long)stats.connections,
           (unsigned long long)stats.input_tokens, (unsigned long long)stats.output_tokens);
  return send_json(c, 200, body);
}

// ---- requests

// The number after "NAME=" in a directive, or `otherwise`.
static double directive(const char *text, const char *end, const char *name, double otherwise) {
  size_t len = strlen(name);
  for (const char *p = text; p + len + 1 < end; p++)
    if (p[-1] == ' ' && !memcmp(p, name, len) && p[len] == '=') return strtod(p + len + 1, NULL);
  return otherwise;
}

static bool asks_for_stream(const char *body, size_t len) {
  const char *end = body + len, *p = memmem(body, len, "\"stream\"", 8);
  if (!p) return false;
  for (p += 8; p < end && (*p == ' ' || *p == ':'); p++) {}
  return end - p >= 4 && !memcmp(p, "true", 4);
}

static bool answer_messages(struct conn *c, const char *body, size_t len) {
  double ttfb_ms = 0, delay_ms = 0, deltas = DEFAULT_DELTAS, status = 200;
  const char *text = memmem(body, len, "[[mock ", 7);
  const char *end = text ? memmem(text, (size_t)(body + len - text), "]]", 2) : NULL;
  if (end) {
    text += 7;
    ttfb_ms = directive(text, end, "ttfb_ms", ttfb_ms);
    delay_ms = directive(text, end, "delay_ms", delay_ms);
    deltas = directive(text, end, "n", deltas);
    status = directive(text, end, "status", status);
  }
  c->status = (int)status;
  c->deltas = deltas < 0 ? 0 : deltas > MAX_DELTAS ? MAX_DELTAS : (int)deltas;
  c->delay = (uint64_t)(delay_ms * (double)NS_PER_MS);
  c->answer = c->status != 200 ? ANSWER_ERROR : asks_for_stream(body, len) ? ANSWER_STREAM : ANSWER_MESSAGE;
  if (ttfb_ms <= 0) return begin_answer(c);
  c->due = now_ns() + (uint64_t)(ttfb_ms * (double)NS_PER_MS);
  timer_start(c);
  return true;
}

static bool starts(const char *head, const char *text) { return !strncmp(head, text, strlen(text)); }

static bool handle(struct conn *c, const char *head, const char *body, size_t len) {
  c->busy = true;
  c->begun = false;
  c->step = STEP_HEAD;
  c->due = 0;
  if (starts(head, "GET /stats ")) return send_stats(c);
  stats.requests++;
  if (starts(head, "POST /v1/messages ") || starts(head, "POST /v1/messages?")) return answer_messages(c, body, len);
  c->answer = starts(head, "POST /v1/messages/count_tokens") ? ANSWER_COUNT : ANSWER_ERROR;
  c->status = 404;
  return begin_answer(c);
}

// Decodes a chunked body in place. Returns the bytes it took of the input, 0 if it is not complete yet;
// `*len` becomes the length of the decoded body.
static size_t unchunk(char *in, size_t available, char *out, size_t *len) {
  size_t at = 0;
  for (*len = 0;;) {
    char *newline = memmem(in + at, available - at, "\r\n", 2);
    if (!newline) return 0;
    size_t size = strtoul(in + at, NULL, 16), data = (size_t)(newline - in) + 2;
    if (size > MAX_REQUEST || data + size + 2 > available) return 0;
    memcpy(out + *len, in + data, size);
    *len += size;
    at = data + size + 2;
    if (!size) return at;
  }
}

// Takes one whole request out of `in`. `*took` says whether there was one. False: the connection is to be closed.
static bool take_request(struct conn *c, bool *took) {
  *took = false;
  char *head = c->in.data, *blank = memmem(head, c->in.len, "\r\n\r\n", 4);
  if (!blank) return true;
  const char *end = blank + 2, *length = find_header(head, end, "content-length");
  size_t head_len = (size_t)(blank + 4 - head), body_len = length ? strtoul(length, NULL, 10) : 0, body_took = body_len;
  char *body = head + head_len, *decoded = NULL;
  if (body_len > MAX_REQUEST) return false;
  if (header_is(head, end, "expect", "100-continue") && !c->sent_continue) {
    c->sent_continue = true;
    if (!emit(c, "HTTP/1.1 100 Continue\r\n\r\n", 25)) return false;
  }
  if (header_is(head, end, "transfer-encoding", "chunked")) {
    decoded = xrealloc(NULL, c->in.len + 1);
    body_took = unchunk(body, c->in.len - head_len, decoded, &body_len);
    if (!body_took) return free(decoded), true;
    body = decoded;
  }
  if (c->in.len < head_len + body_took) return free(decoded), true;
  c->keep_alive = !header_is(head, end, "connection", "close");
  c->sent_continue = false;
  bool alive = handle(c, head, body, body_len);
  free(decoded);
  buffer_consume(&c->in, head_len + body_took);
  *took = true;
  return alive;
}

// Carries the connection as far as it goes without waiting. False: it is finished.
static bool advance(struct conn *c) {
  if (!flush(c)) return false;
  if (c->busy && c->begun && !stream_on(c)) return false;
  for (bool took = true; took && !c->busy && c->in.len;)
    if (!take_request(c, &took)) return false;
  return c->busy || c->keep_alive || !all_taken(c);
}

static bool receive(struct conn *c) {
  for (;;) {
    if (c->in.len > MAX_REQUEST) return false;
    buffer_reserve(&c->in, READ_ROOM);
    ssize_t got = recv(c->fd, c->in.data + c->in.len, c->in.cap - c->in.len, 0);
    if (got == 0) return false;
    if (got < 0) return errno == EAGAIN;
    c->in.len += (size_t)got;
  }
}

static void drop(struct conn *c) {
  if (c->busy) stats.aborted++;
  timer_cancel(c);
  close(c->fd);
  free(c->in.data);
  free(c->out.data);
  free(c);
}

static void carry_on(struct conn *c) {
  if (advance(c)) watch(c);
  else drop(c);
}

static void accept_all(int listener) {
  for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
    no_delay(fd);
    struct conn *c = xrealloc(NULL, sizeof *c);
    *c = (struct conn){.fd = fd, .heap_at = -1, .keep_alive = true};
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
    stats.connections++;
  }
}

static void fire_timers(void) {
  for (uint64_t t = now_ns(); timers_len && timers[0]->due <= t;) {
    struct conn *c = timers[0];
    timer_cancel(c);
    if (!c->begun && !begin_answer(c)) drop(c);
    else carry_on(c);
  }
}

static int listen_on(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = loopback(port);
  if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096))
    die("mock: port %d: %s", port, strerror(errno));
  return fd;
}

int main(int argc, char **argv) {
  if (argc != 2) die("usage: mock PORT");
  signal(SIGPIPE, SIG_IGN);
  ask_for_exact_timers();
  delta_chunk_len = put_chunk(delta_chunk, DELTA);
  epoll = epoll_create1(EPOLL_CLOEXEC);
  int listener = listen_on(atoi(argv[1]));
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];  // NULL stands for the listener
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e);
  for (;;) {
    int n = wait_events(epoll, events, EVENTS, timers_len ? timers[0]->due : UINT64_MAX);
    for (int i = 0; i < n; i++) {
      struct conn *c = events[i].data.ptr;
      if (!c) accept_all(listener);
      else if (events[i].events & ~(uint32_t)EPOLLOUT && !receive(c)) drop(c);
      else carry_on(c);
    }
    fire_timers();
  }
}
