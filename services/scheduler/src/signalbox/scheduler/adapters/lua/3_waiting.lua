-- Who waits for an account: the schedulers hold the requests and their order, here is only what they must share.
-- A pool's queue bounds how many wait in it (domain/waiting.py says for what); lanes say for which accounts they wait,
-- so that a newcomer, whichever scheduler it comes to, does not take what those before it wait for.
--
-- Members are lease ids, scores the time at which they stop waiting, so that whoever died is forgotten by itself.
-- Lanes: <pool>|<model sent> where any account of the pool will do, @<account> where only the pinned one will.

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

local function join(set, q)
  redis.call('ZADD', set, q.till, q.id)
  redis.call('PEXPIREAT', set, q.till + 1000)
end

-- Enters a queue, or renews the place in it. {'queued', how many wait} or {'crowded'}.
local function enqueue(q, now)
  local queue = wait_set(q.queue)
  redis.call('ZREMRANGEBYSCORE', queue, '-inf', '(' .. now)
  local waiting = redis.call('ZCARD', queue)
  if waiting >= q.most and not redis.call('ZSCORE', queue, q.id) then
    return {'crowded'}
  end
  join(queue, q)
  for _, lane in ipairs(q.lanes) do
    join(wait_set(lane), q)
  end
  if q.till > waiting_until then
    waiting_until = q.till
    redis.call('HSET', 'sb:epoch', 'waiting', q.till)
  end
  return {'queued', waiting + 1}
end

-- Leaves a queue; `held` names a failed lease whose slot was kept for the waiting request, '' none.
local function leave(q)
  redis.call('ZREM', wait_set(q.queue), q.id)
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

-- Tells the schedulers that an account has room again, where somebody may be waiting for it.
local function tell_of_room(account, now)
  if someone_waits(now) then
    redis.call('PUBLISH', 'sb:events', '+' .. account)
  end
end
