-- What admitting, settling and upkeep share: names of the running epoch's keys, lease tokens, the limits of a key.
-- All or nothing is each operation's own duty; an operation runs without anybody in between.
-- A lease's token carries all that recreates it after a flush: two bytes of length, a packed head, the request.

local LEASE_TTL_MS = 30000
local TOMB_TTL_MS = 7200000
local FORGONE_TTL_MS = 600000
local MOST_KNOWN_KEYS = 100000
local FIRST_USES = 'sb:first'
local VERSIONS = 'sb:versions'
local DIRTY = 'sb:dirty' -- accounts by the time they last changed

local registry_version -- of the running call
local epoch, asked_ms, was_heard -- of the running call; see 8_batch.lua
-- Keys that are known to have a first use in this epoch, so that it need not be looked up for each request.
local known_first, known_first_count = {}, 0
local touched -- accounts that the running call changed
local LEASES, EXPIRY, NUMBERS -- leases and beat:<lease>; leases by their end; numbers in flight, k:<key> and a:<account>

-- What lives and dies with an epoch: leases, numbers in flight, counters.
local function own(name)
  return 'sb:' .. epoch .. ':' .. name
end

local function use_epoch(id)
  if id ~= epoch then
    epoch = id
    LEASES, EXPIRY, NUMBERS, COUNTERS = own('leases'), own('expiry'), own('n'), own('c:')
    known_first, known_first_count = {}, 0
  end
end

local TOKEN_HEAD, HEAD_VALUES = 0x8d, 26 -- how msgpack begins a map of 13; its names and values

-- What of a token's head is read here; all else is for domain/operations.py.
local function head_with(e, admitted, key, probe, account, group, class, charges)
  return {
    e = e, admitted = admitted, key = key, probe = probe, account = account, group = group, class = class,
    charges = charges, id = '',
  }
end

-- A map unpacked as a table grows one entry at a time; one that lies as `write_token` writes it is taken apart without.
local function head_of(_, k1, e, k2, t, k3, key, k4, _, k5, _, k6, _, k7, probe, k8, _, k9, account, k10, group, k11, _,
    k12, class, k13, charges)
  if k1 == 'e' and k2 == 't' and k3 == 'key' and k4 == 'owner' and k5 == 'attempt' and k6 == 'tried' and k7 == 'probe'
      and k8 == 'pool' and k9 == 'account' and k10 == 'group' and k11 == 'model' and k12 == 'class'
      and k13 == 'charges' then
    return head_with(e, t, key, probe, account, group, class, charges)
  end
  return nil
end

-- Heads of leases that were granted in this process and run, by token: most are settled without being read again.
local MOST_HEADS = 2000
local heads, heads_count = {}, 0

local function forget_head(token)
  if heads[token] then
    heads[token], heads_count = nil, heads_count - 1
  end
end

local function read_token(token)
  if heads[token] then
    return heads[token]
  end
  local high, low, first = string.byte(token, 1, 3)
  local head = first == TOKEN_HEAD and head_of(cmsgpack.unpack_limit(token, HEAD_VALUES, 3))
  if not head then -- of another version
    head = cmsgpack.unpack(string.sub(token, 3, 2 + high * 256 + low))
    head.admitted = head.t
  end
  return head
end

-- What all tokens of a candidate in a pool have in common, packed once.
local function pack_place(cand, pool)
  local packed = cand.places[pool]
  if not packed then
    packed = cmsgpack.pack('pool', pool, 'account', cand.account, 'group', cand.group, 'model', cand.model,
      'class', cand.class, 'charges')
    cand.places[pool] = packed
  end
  return packed
end

-- The token of a new lease. Names and their order: head_of.
local function write_token(q, now, pool, cand, probes, charges, request)
  local packed = cmsgpack.pack('e', epoch, 't', now, 'key', q.key, 'owner', q.owner, 'attempt', q.attempt,
    'tried', q.tried, 'probe', probes) .. pack_place(cand, pool) .. cmsgpack.pack(charges)
  local length = 1 + #packed
  local token = string.char(math.floor(length / 256), length % 256, TOKEN_HEAD) .. packed .. request
  if heads_count >= MOST_HEADS then
    heads, heads_count = {}, 0
  end
  heads[token] = head_with(epoch, now, q.key, probes, cand.account, cand.group, cand.class, charges)
  heads_count = heads_count + 1
  return token
end

-- Leases and numbers in flight are read once per call, and written together at its end.
local leases, numbers                               -- as they are now, as far as the running call has looked
local changed_leases, changed_numbers, changed_ends -- what Redis does not have yet; false: to be removed

local function forget_changes()
  leases, numbers = {}, {}
  changed_leases, changed_numbers, changed_ends = {}, {}, {}
  forget_counters()
end

-- A lease's token, false where it does not run.
local function lease_of(id)
  local token = leases[id]
  if token == nil then
    token = redis.call('HGET', LEASES, id)
    leases[id] = token
  end
  return token
end

-- Reads the leases of several operations at once.
local function look_ahead(ids)
  local tokens = redis.call('HMGET', LEASES, unpack(ids))
  for i, id in ipairs(ids) do
    leases[id] = tokens[i]
  end
end

local function lease_runs(id)
  return lease_of(id) ~= false
end

local function keep_lease(id, token)
  leases[id], changed_leases[id] = token, token
end

-- When the reaper looks at a lease, Unix ms; false: never.
local function set_end(id, at)
  changed_ends[id] = at
end

-- What a heartbeat told of a lease; false: nothing.
local function keep_beat(id, progress)
  changed_leases['beat:' .. id] = progress
end

local function drop_lease(id)
  keep_lease(id, false)
  keep_beat(id, false)
  set_end(id, false)
end

local function in_flight(field)
  local number = numbers[field]
  if not number then
    number = tonumber(redis.call('HGET', NUMBERS, field)) or 0
    numbers[field] = number
  end
  return number
end

-- Reads two numbers in flight at once, where neither is known.
local function look_at(first, second)
  if not numbers[first] and not numbers[second] then
    local found = redis.call('HMGET', NUMBERS, first, second)
    numbers[first], numbers[second] = tonumber(found[1]) or 0, tonumber(found[2]) or 0
  end
end

-- Changes a number in flight, which never falls below 0, and returns it.
local function count(field, change)
  local number = math.max(in_flight(field) + change, 0)
  numbers[field], changed_numbers[field] = number, number
  return number
end

local MOST_ARGUMENTS = 4000 -- even, and well below what unpack can take

local function call_with_all(command, key, arguments)
  for first = 1, #arguments, MOST_ARGUMENTS do
    redis.call(command, key, unpack(arguments, first, math.min(first + MOST_ARGUMENTS - 1, #arguments)))
  end
end

local function write_leases()
  local kept, dropped = {}, {}
  for id, token in pairs(changed_leases) do
    if token then
      kept[#kept + 1] = id
      kept[#kept + 1] = token
    else
      dropped[#dropped + 1] = id
    end
  end
  call_with_all('HDEL', LEASES, dropped)
  call_with_all('HSET', LEASES, kept)
end

local function write_ends()
  local kept, dropped = {}, {}
  for id, at in pairs(changed_ends) do
    if at then
      kept[#kept + 1] = at
      kept[#kept + 1] = id
    else
      dropped[#dropped + 1] = id
    end
  end
  call_with_all('ZREM', EXPIRY, dropped)
  call_with_all('ZADD', EXPIRY, kept)
end

local function write_numbers()
  local changed = {}
  for field, number in pairs(changed_numbers) do
    changed[#changed + 1] = field
    changed[#changed + 1] = number
  end
  call_with_all('HSET', NUMBERS, changed)
end

-- What is read past these tables, by key or by range, is right only after this.
local function write_changes()
  write_counters()
  write_leases()
  write_ends()
  write_numbers()
  changed_leases, changed_numbers, changed_ends = {}, {}, {}
end

-- What many operations repeat is sent packed, and what it comes to is remembered by just that: the documents behind
-- it change seldom. Nobody may change what is read so.
local MOST_REMEMBERED = 10000

local function remembering(build)
  local known, count = {}, 0
  return function(packed)
    local value = known[packed]
    if not value then
      if count >= MOST_REMEMBERED then
        known, count = {}, 0
      end
      value = build(cmsgpack.unpack(packed))
      known[packed], count = value, count + 1
    end
    return value
  end
end

-- Limits by name: what bounds each dimension (-1: nothing) is at 1 to 3.
local function build_limits(list)
  local out = {}
  for i, l in ipairs(list) do
    out[i] = {l[3], l[4], l[5], name = l[1], per = l[2], strict = l[6] == 1}
  end
  return out
end

local function build_caps(list, group)
  local out = {}
  for i, c in ipairs(list) do
    out[i] = {c[2], c[3], c[4], name = 'a:' .. group .. ':' .. c[1], per = c[1]}
  end
  return out
end

local read_limits = remembering(build_limits)
local read_pools = remembering(function(list) return list end)
local read_candidate = remembering(function(c)
  return {
    account = c[1], group = c[2], most = c[3], pool = c[4], model = c[5], class = c[6], limits = build_limits(c[7]),
    caps = build_caps(c[8], c[2]), draining = c[9] == 1, places = {},
  }
end)

local NONE, NO_EFFECT = {}, {'', '', 0, '', 0}

-- Leases that were given back before they were granted: the scheduler that hangs with the question in hand may go on.
local forgone_until -- of the running call: none is remembered beyond this, Unix ms

local function forgo(id, now)
  forgone_until = now + FORGONE_TTL_MS
  redis.call('SET', own('forgone:' .. id), 1, 'PX', FORGONE_TTL_MS)
  redis.call('HSET', 'sb:epoch', 'forgone', forgone_until)
end

local function was_forgone(id, now)
  return forgone_until > now and redis.call('EXISTS', own('forgone:' .. id)) == 1
end

-- Operations that come as plain values in the order of domain/operations.py: a table is made of them at once, where a
-- packed one would grow entry by entry. `usual` and `worst` are needs: requests, tokens, nano-dollars.
local function read_take(op, id, key, owner, attempt, version, life, most, counts, usual_tokens, usual_cost,
    worst_tokens, worst_cost, input, output, limits, packed, pools, session, pin_ttl, hint, hint_state, refuse, bound,
    turn, hurry, tried, names, versions, failed, last)
  local cands = packed or NONE
  for i, cand in ipairs(cands) do
    cands[i] = read_candidate(cand)
  end
  return {
    op = op, id = id, key = key, owner = owner, attempt = attempt, version = version, life = life, most = most,
    usual = {counts, usual_tokens, usual_cost}, worst = {counts, worst_tokens, worst_cost},
    sizes = {1, input, output}, limits = read_limits(limits), cands = cands, pools = read_pools(pools),
    session = session, pin_ttl = pin_ttl, hint = hint, hint_state = hint_state, refuse = refuse, bound = bound,
    turn = turn, hurry = hurry, tried = tried or NONE, names = names or NONE, versions = versions or NONE,
    failed = failed, last = last,
  }
end

local function read_settle(op, id, tokens, cost, input, output, effect, ok, ended, gateway, unused, windows)
  return {
    op = op, id = id, tokens = tokens, cost = cost, input = input, output = output, effect = effect or NO_EFFECT,
    ok = ok, ended = ended, gateway = gateway, unused = unused, windows = windows or NONE,
  }
end

local READERS = {admit = read_take, retry = read_take, settle = read_settle, reap = read_settle}
local FIRST_TEXT, LAST_TEXT = 0xa0, 0xbf -- how msgpack begins a short text

local function read_plain(op, ...)
  return READERS[op](op, ...)
end

local function read_operation(packed)
  local first = string.byte(packed, 1)
  if first < FIRST_TEXT or first > LAST_TEXT then
    return cmsgpack.unpack(packed)
  end
  local q = read_plain(cmsgpack.unpack(packed))
  if q.failed then
    q.failed = read_plain(cmsgpack.unpack(q.failed))
  end
  return q
end

-- What one request needs of a limit.
local function need_of(q, limit)
  return limit.strict and q.worst or q.usual
end

local function key_counter(q, limit)
  return 'k:' .. q.key .. ':' .. limit.name
end

local function open_limits(q, limits, now)
  local counters = {}
  for i, limit in ipairs(limits) do
    counters[i] = open_counter(key_counter(q, limit), limit.per, now)
  end
  return counters
end

-- The limit that makes the request wait longest: {index, dimension, when it fits, never}; nil where all have room.
local function worst_limit(q, limits, counters, now)
  local worst
  for i, limit in ipairs(limits) do
    local need = need_of(q, limit)
    local dim = overrun(counters[i], limit, need)
    if dim then
      local at = fits_at(counters[i], dim, limit[dim], need[dim], now)
      local never = (need[dim] > limit[dim]) and 1 or 0
      if not worst or (at == 0 and worst[3] ~= 0) or (worst[3] ~= 0 and at > worst[3]) then
        worst = {i, dim, at, never}
      end
    end
  end
  return worst
end

-- One after another, packed: each of the numbers would cost more as an answer of its own.
local function packed_reports(counters)
  local out, n = {}, 0
  for _, c in ipairs(counters) do
    out[n + 1], out[n + 2], out[n + 3], out[n + 4], out[n + 5], out[n + 6], out[n + 7] = report(c)
    n = n + 7
  end
  return cmsgpack.pack(out)
end
