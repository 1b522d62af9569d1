-- The registry that all schedulers share: objects with versions, a log of changes, and fences against old writers.
-- Also what people ask of the counters of keys and accounts, read without changing anything.

local LOG = 'sb:log'        -- members <kind>/<id> by version; deleted objects stay for a while
local GONE = 'sb:gone'      -- deleted members by version
local MOST_GONE = 1000

local function is_fenced(q)
  local seen = tonumber(redis.call('HGET', 'sb:fences', q.writer)) or 0
  if q.fence < seen then
    return true
  end
  if q.fence > seen then
    redis.call('HSET', 'sb:fences', q.writer, q.fence)
  end
  return false
end

local function log_change(member)
  local version = redis.call('INCR', 'sb:version')
  redis.call('ZADD', LOG, version, member)
  return version
end

local function put(q, object)
  if is_fenced(q) then
    return {'fenced'}
  end
  local member = q.kind .. '/' .. q.id
  if redis.call('HGET', 'sb:objects', member) == object then
    return {'same'}
  end
  if q.paid ~= 1 and redis.call('HEXISTS', own('owed'), member) == 1 then
    return {'owed'}
  end
  redis.call('HSET', 'sb:objects', member, object)
  redis.call('HSET', VERSIONS, member, log_change(member))
  redis.call('ZREM', GONE, member)
  if q.kind == 'ClaudeAccount' then
    if redis.call('HDEL', BENCHES, q.id) == 1 then -- a changed document is a reason to try again
      redis.call('INCR', HEALTH)
    end
  end
  return {'put'}
end

-- Log entries of deleted objects go after a while; a scheduler further behind than the floor reads everything anew.
local function forget_gone()
  if redis.call('ZCARD', GONE) <= MOST_GONE then
    return
  end
  local popped = redis.call('ZPOPMIN', GONE, MOST_GONE / 2)
  for i = 1, #popped, 2 do
    redis.call('ZREM', LOG, popped[i])
    redis.call('SET', 'sb:floor', popped[i + 1])
  end
end

local function delete(q)
  if is_fenced(q) then
    return {'fenced'}
  end
  local member = q.kind .. '/' .. q.id
  if redis.call('HDEL', 'sb:objects', member) == 0 then
    return {'same'}
  end
  redis.call('HDEL', VERSIONS, member)
  redis.call('ZADD', GONE, log_change(member), member)
  forget_gone()
  return {'deleted'}
end

-- Objects changed after a version: {head version, whole (1: the caller must start anew), member, version, object ...}.
local function changes(q)
  local head = tonumber(redis.call('GET', 'sb:version')) or 0
  local floor = tonumber(redis.call('GET', 'sb:floor')) or 0
  local anew = (q.after < floor or q.after > head) and 1 or 0
  local after = anew == 1 and 0 or q.after
  local out = {head, anew}
  local members = redis.call('ZRANGEBYSCORE', LOG, '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, q.most)
  for i = 1, #members, 2 do
    out[#out + 1] = members[i]
    out[#out + 1] = members[i + 1]
    out[#out + 1] = redis.call('HGET', 'sb:objects', members[i]) or ''
  end
  return out
end

-- {in flight, first use (0: none), {reports of the limits}}
local function peek(q, now)
  local reports = {}
  for i, c in ipairs(open_limits(q, build_limits(q.limits), now)) do
    reports[i] = {report(c)}
  end
  return {
    tonumber(redis.call('HGET', own('n'), 'k:' .. q.key)) or 0,
    tonumber(redis.call('HGET', FIRST_USES, q.key)) or 0,
    reports,
  }
end

local SMALLEST = {1, 1, 1} -- what any request needs at least

-- Until when an account's own caps keep out even the smallest request, 0 where they do not.
local function capped_until(group, caps, now)
  local latest = 0
  for _, cap in ipairs(build_caps(caps, group)) do
    local c = open_counter(cap.name, cap.per, now)
    local dim = overrun(c, cap, SMALLEST)
    if dim then
      latest = math.max(latest, fits_at(c, dim, cap[dim], SMALLEST[dim], now))
    end
  end
  return latest
end

-- For each of `accounts` (limit group and caps): until when they keep it out, as above.
local function capped(q, now)
  local out = {}
  for i, account in ipairs(q.accounts) do
    out[i] = capped_until(account[1], account[2], now)
  end
  return out
end

-- A fact that outlives Redis came back from the ledger's database; the oldest wins.
local function remember(q)
  local hash = q.kind == 'first' and FIRST_USES or 'sb:since'
  local known = tonumber(redis.call('HGET', hash, q.name))
  if not known or q.at < known then
    redis.call('HSET', hash, q.name, q.at)
  end
  return {'kept'}
end

-- When each of the named limits was first seen; now, for those seen for the first time.
local function since(q, now)
  local out = {}
  for i, name in ipairs(q.names) do
    redis.call('HSETNX', 'sb:since', name, now)
    out[i] = tonumber(redis.call('HGET', 'sb:since', name))
  end
  return out
end

-- Adds what the ledger knows to a counter. `rows`: {start in ms, requests, tokens, nano-dollars} each.
local function rebuild(q, now)
  local c = open_counter(q.name, q.per, now)
  begin_period(c)
  for _, row in ipairs(q.rows) do
    local slot = c.width and math.floor(row[1] / c.width) or c.slot
    if not c.width and (row[1] < c.slot or (c.ends > 0 and row[1] >= c.ends)) then
      slot = -1 -- an earlier period
    end
    for dim = 1, DIMENSIONS do
      adjust(c, slot, dim, row[1 + dim], 0)
    end
    if c.width and slot >= c.slot - BUCKETS and (not c.o or slot < c.o) then
      c.o = slot
      redis.call('HSET', c.key, 'o', slot)
    end
  end
  return {'rebuilt'}
end

-- Rebuilds the counters of an object that had no document when all were rebuilt, once.
local function repay(q, now)
  if redis.call('HDEL', own('owed'), q.member) == 1 then
    for _, counter in ipairs(q.counters) do
      rebuild(counter, now)
    end
  end
  return {'repaid'}
end
