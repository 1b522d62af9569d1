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
local epoch, asked_ms, gateways_delivered -- of the running call; see 8_batch.lua
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

local function lease_runs(id)
  return redis.call('HEXISTS', LEASES, id) == 1
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
