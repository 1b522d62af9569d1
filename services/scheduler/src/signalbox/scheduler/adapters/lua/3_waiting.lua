-- Who waits for an account: the schedulers hold the requests and their order, here is only what they must share.
-- A pool's queue bounds how many wait in it (domain/waiting.py says for what); lanes say for which accounts they wait,
-- so that a newcomer, whichever scheduler it comes to, does not take what those before it wait for. The line says which
-- keys wait, who was served longest ago first: schedulers are told of it with each account that has room.
--
-- Members are lease ids, scores the time at which they stop waiting, so that whoever died is forgotten by itself.
-- Lanes: <pool>|<model sent> where any account of the pool will do, @<account> where only the pinned one will. All that
-- wait under one key are in ^<key>.

local MOST_TOLD = 8 -- keys that are told of with one account

local waiting_until -- of the running call: nobody waits beyond this, Unix ms

local function wait_set(name)
  return own('wait:' .. name)
end

local function someone_waits(now)
  return waiting_until > now
end

-- Whether a newcomer must stand behind somebody in the lane.
local function is_awaited(lane, now)
  return redis.call('ZCOUNT', wait_set(lane), now, '+inf') > 0
end

-- The first of the lanes of `cands` in which somebody waits, nil where nobody does.
local function awaited_lane(cands, pools, now)
  local looked = {}
  for _, cand in ipairs(cands) do
    local lane = pools[cand.pool][1] .. '|' .. cand.model
    if looked[lane] == nil then
      looked[lane] = is_awaited(lane, now)
    end
    if looked[lane] then
      return lane
    end
  end
  return nil
end

-- A set lives as long as anybody waits at all: its last member may wait for less time than those before it.
local function join(set, q)
  redis.call('ZADD', set, q.till, q.id)
  redis.call('PEXPIREAT', set, waiting_until + 1000)
end

local function next_turn()
  return redis.call('HINCRBY', 'sb:epoch', 'turn', 1)
end

-- Puts a key at the end of the line.
local function enter_line(key)
  if redis.call('ZADD', own('line'), 'NX', next_turn(), key) == 1 then
    redis.call('PEXPIREAT', own('line'), waiting_until + 1000)
  end
end

-- The key had its turn: the others' come first now.
local function had_turn(key)
  redis.call('ZADD', own('line'), 'XX', next_turn(), key)
end

-- The first keys of the line; those that wait no longer leave it.
local function first_in_line(now)
  local found = {}
  for _, key in ipairs(redis.call('ZRANGE', own('line'), 0, MOST_TOLD - 1)) do
    if is_awaited('^' .. key, now) then
      found[#found + 1] = key
    else
      redis.call('ZREM', own('line'), key)
    end
  end
  return found
end

-- Enters a queue, or renews the place in it. {'queued', how many wait} or {'crowded'}.
local function enqueue(q, now)
  local queue = wait_set(q.queue)
  redis.call('ZREMRANGEBYSCORE', queue, '-inf', '(' .. now)
  local waiting = redis.call('ZCARD', queue)
  if waiting >= q.most and not redis.call('ZSCORE', queue, q.id) then
    return {'crowded'}
  end
  if q.till > waiting_until then
    waiting_until = q.till
    redis.call('HSET', 'sb:epoch', 'waiting', q.till)
  end
  join(queue, q)
  join(wait_set('^' .. q.key), q)
  enter_line(q.key)
  for _, lane in ipairs(q.lanes) do
    join(wait_set(lane), q)
  end
  return {'queued', waiting + 1}
end

-- Leaves a queue; `held` names a failed lease whose slot was kept for the waiting request, '' none.
local function leave(q)
  redis.call('ZREM', wait_set(q.queue), q.id)
  redis.call('ZREM', wait_set('^' .. q.key), q.id)
  for _, lane in ipairs(q.lanes) do
    redis.call('ZREM', wait_set(lane), q.id)
  end
  local key = q.held ~= '' and redis.call('HGET', own('held'), q.held)
  if key then
    redis.call('HDEL', own('held'), q.held)
    set_end(q.held, false)
    count('k:' .. key, -1)
  end
  return {'left'}
end

-- Tells the schedulers that an account has room again, where somebody may be waiting for it, and whose turn it is.
local function tell_of_room(account, now)
  if someone_waits(now) then
    redis.call('PUBLISH', 'sb:events', '>' .. table.concat({account, unpack(first_in_line(now))}, ' '))
  end
end
