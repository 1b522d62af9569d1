-- Upkeep of leases: heartbeats renew or recreate them, the reaper ends those that nobody renews.

local function recreate(id, token, head, now)
  ensure_counters(head, now)
  for _, c in ipairs(head.charges) do
    local counter = open_counter(c[1], c[2], now)
    if c[4] > 0 then
      adjust(counter, c[3], 1, c[4], 0)
    end
    for dim = 2, 3 do
      if c[3 + dim] > 0 then
        adjust(counter, c[3], dim, 0, c[3 + dim])
      end
    end
  end
  count('k:' .. head.key, 1)
  count('a:' .. head.account, 1)
  touched[head.account] = now
  keep_lease(id, token)
  redis.call('HDEL', 'sb:' .. head.e .. ':leases', id)
end

-- What the providers told of limit groups: a flat list of names and windows for each.
local function windows(q)
  local out = {}
  for i, group in ipairs(q.groups) do
    out[i] = redis.call('HGETALL', 'sb:windows:' .. group)
  end
  return out
end

local function beat(q, token, progress, now)
  if not lease_runs(q.id) then
    local head = read_token(token)
    if head.e == epoch or redis.call('EXISTS', tombstone(q.id)) == 1 then
      return {'gone'}
    end
    recreate(q.id, token, head, now)
  end
  set_end(q.id, now + LEASE_TTL_MS)
  if progress ~= '' then
    keep_beat(q.id, progress)
  end
  return {'kept'}
end

-- Leases that nobody renewed: {id, token, last heartbeat} each. Held slots among them are freed at once.
local function expired(q, now)
  local out = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', now, 'LIMIT', 0, q.most)) do
    local key = redis.call('HGET', own('held'), id)
    if key then
      redis.call('HDEL', own('held'), id)
      set_end(id, false)
      count('k:' .. key, -1)
    else
      out[#out + 1] = {id, lease_of(id), redis.call('HGET', LEASES, 'beat:' .. id) or ''}
    end
  end
  return out
end

-- Settles a lease that is still expired; keeps its event until the ledger has it, '' where it does already.
local function reap(q, event, now)
  local expires = tonumber(redis.call('ZSCORE', EXPIRY, q.id))
  if not expires or expires > now then
    return {'renewed'}
  end
  settle(q, '', now, false)
  bury(q)
  if event ~= '' then
    redis.call('HSET', 'sb:orphans', q.id, event)
  end
  return {'reaped'}
end
