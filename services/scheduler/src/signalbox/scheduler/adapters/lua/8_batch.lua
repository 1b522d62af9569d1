-- The one function that schedulers call: a batch of operations, each with its own answer, at one instant.
-- An epoch is confirmed in this process's memory alone, so that a restarted or replaced server, which may have lost the
-- last second, admits nothing until a scheduler has compared it with the ledger.

local confirmed = nil

local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

-- Whether the ledger had a gateway's journal when it was asked.
function was_heard(gateway)
  return redis.call('SISMEMBER', own('heard'), gateway) == 1
end

-- A gateway's journal, when it is asked for, holds every attempt that ended this long before an epoch began.
local JOURNALLED_MS = 60000

-- Confirms the stored epoch where this server process has been the one that held it all the time.
local function confirm()
  local e = redis.call('HMGET', 'sb:epoch', 'id', 'run', 'state')
  if e[1] and e[2] == run_id() then
    confirmed = e[1]
    return {e[3], e[1]}
  end
  return {'lost', e[1] or ''}
end

-- Begins a new epoch; heartbeats may recreate leases from now on, admission waits for `finish`.
local function begin(q, now)
  redis.call('HSET', 'sb:epoch', 'id', q.id, 'run', run_id(), 'state', 'recovering', 'asked', now - JOURNALLED_MS,
    'waiting', 0)
  confirmed = q.id
  return {'recovering', q.id}
end

local function finish(q)
  if redis.call('HGET', 'sb:epoch', 'id') ~= q.id then
    return {'lost', ''}
  end
  redis.call('HSET', 'sb:epoch', 'state', 'open')
  redis.call('PUBLISH', 'sb:events', 'epoch')
  return {'open', q.id}
end

local WHEN_OPEN = {
  admit = function(q, now, a) return admit(q, a, now, false) end,
  retry = function(q, now, a, b) return retry(q, a, b, now) end,
  settle = function(q, now, a) return settle(q, a, now, false) end,
  enqueue = enqueue,
  leave = leave,
  expired = expired,
  reap = function(q, now, a) return reap(q, a, now) end,
}
-- Those that see what the call's earlier operations left unwritten; all others find it written.
local SEE_CHANGES = {admit = true, retry = true, settle = true, beat = true, enqueue = true, leave = true}
local ALWAYS = {
  beat = function(q, now, a, b) return beat(q, a, b, now) end,
  put = function(q, _, a) return put(q, a) end,
  delete = delete,
  changes = changes,
  peek = peek,
  capped = capped,
  windows = windows,
  remember = remember,
  since = since,
  rebuild = rebuild,
  repay = repay,
  told = told,
  finish = finish,
}

local function run(q, now, sound, open, a, b)
  if not SEE_CHANGES[q.op] then
    write_changes()
  end
  if q.op == 'confirm' then
    return confirm()
  elseif q.op == 'begin' then
    return begin(q, now)
  elseif not sound then
    return {'lost'}
  elseif ALWAYS[q.op] then
    return ALWAYS[q.op](q, now, a, b)
  elseif not open then
    return {'closed'}
  end
  return WHEN_OPEN[q.op](q, now, a, b)
end

-- The operations that `args` describe, and what went wrong with those that cannot be read. Leases that several of them
-- are about are read together.
local function read_operations(args)
  local operations, faults, ids = {}, {}, {}
  for i = 2, #args, 3 do
    local fine, q = pcall(read_operation, args[i])
    if fine then
      operations[i] = q
      if SEE_CHANGES[q.op] and q.id then
        ids[#ids + 1] = q.id
      end
    else
      faults[i] = q
    end
  end
  if #ids > 1 and #ids <= MOST_ARGUMENTS then
    look_ahead(ids)
  end
  return operations, faults
end

-- Arguments: the epoch the caller knows, then three for each operation: packed description, two opaque texts.
-- Answer: Redis time in ms, then one answer for each operation.
redis.register_function('@FUNCTION@', function(_, args)
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local e = redis.call('HMGET', 'sb:epoch', 'id', 'state', 'asked', 'waiting', 'forgone')
  use_epoch(e[1] or '')
  asked_ms, anyone_out, touched = tonumber(e[3]) or 0, nil, {}
  waiting_until, forgone_until = tonumber(e[4]) or 0, tonumber(e[5]) or 0
  forget_changes()
  registry_version = redis.call('GET', 'sb:version') or '0'
  local sound = e[1] and e[1] == confirmed and e[1] == args[1]
  local answers = {now}
  local operations, faults = read_operations(args)
  for i = 2, #args, 3 do
    local fine, answer = false, faults[i]
    if operations[i] then
      fine, answer = pcall(run, operations[i], now, sound, e[2] == 'open', args[i + 1], args[i + 2])
    end
    answers[#answers + 1] = fine and answer or {'error', tostring(answer)}
  end
  write_changes()
  local dirty = {}
  for account, at in pairs(touched) do
    dirty[#dirty + 1] = at
    dirty[#dirty + 1] = account
  end
  call_with_all('ZADD', DIRTY, dirty)
  return answers
end)
