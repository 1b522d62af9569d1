-- What admitting, settling and upkeep share: names of the running epoch's keys, lease tokens, the limits of a key.
-- All or nothing is each operation's own duty; an operation runs without anybody in between.
-- A lease's token carries all that recreates it after a flush: two bytes of length, a packed head, the request.

local LEASE_TTL_MS = 30000
local TOMB_TTL_MS = 7200000
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
    LEASES, EXPIRY, NUMBERS = own('leases'), own('expiry'), own('n')
    known_first, known_first_count = {}, 0
  end
end

local function read_token(token)
  local length = string.byte(token, 1) * 256 + string.byte(token, 2)
  return cmsgpack.unpack(string.sub(token, 3, 2 + length))
end

local function write_token(head, request)
  local packed = cmsgpack.pack(head)
  local length = #packed
  return string.char(math.floor(length / 256), length % 256) .. packed .. request
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

-- What is not said of an operation; domain/operations.py has the same defaults.
local UNSAID = {__index = {
  tried = {}, names = {}, versions = {}, life = 0, most = 0, counts = 0, limits = {}, usual = {0, 0}, worst = {0, 0},
  sizes = {0, 0}, cands = {}, pools = {}, session = '', pin_ttl = 0, hint = '', hint_state = '', refuse = 0, bound = 0,
  turn = 0, hurry = 0,
  tokens = 0, cost = 0, input = 0, output = 0, effect = {'', '', 0, '', 0}, ok = 0, ended = 0, gateway = '', unused = 0,
  windows = {},
}}

local function read_operation(packed)
  local q = setmetatable(cmsgpack.unpack(packed), UNSAID)
  if q.failed then
    setmetatable(q.failed, UNSAID)
  end
  return q
end

-- What one request needs of a limit: {requests, tokens, nano-dollars}.
local function need_of(q, limit)
  local amount = limit[6] == 1 and q.worst or q.usual
  return {q.counts, amount[1], amount[2]}
end

local function open_limits(q, limits, now)
  local counters = {}
  for i, limit in ipairs(limits) do
    counters[i] = open_counter(own('c:k:' .. q.key .. ':' .. limit[1]), limit[2], now)
  end
  return counters
end

-- The limit that makes the request wait longest: {index, dimension, when it fits, never}; nil where all have room.
local function worst_limit(q, limits, counters, now)
  local worst
  for i, limit in ipairs(limits) do
    local bounds, need = {limit[3], limit[4], limit[5]}, need_of(q, limit)
    local dim = overrun(counters[i], bounds, need)
    if dim then
      local at = fits_at(counters[i], dim, bounds[dim], need[dim], now)
      local never = (need[dim] > bounds[dim]) and 1 or 0
      if not worst or (at == 0 and worst[3] ~= 0) or (worst[3] ~= 0 and at > worst[3]) then
        worst = {i, dim, at, never}
      end
    end
  end
  return worst
end

local function reports(counters)
  local out = {}
  for i, c in ipairs(counters) do
    out[i] = report(c)
  end
  return out
end
