-- Admitting and settling: checks, reservations, accounts, pins and leases, each call all or nothing.
-- The scheduler ranks accounts beforehand and says in `q` what may be granted; nothing here is a matter of taste.
-- A lease's token carries all that recreates it after a flush: two bytes of length, a packed head, the request.

local LEASE_TTL_MS = 30000
local TOMB_TTL_MS = 7200000
local MOST_KNOWN_KEYS = 100000
local FIRST_USES = 'sb:first'
local VERSIONS = 'sb:versions'
local DIRTY = 'sb:dirty' -- accounts by the time they last changed

local registry_version -- of the running call
local epoch, asked_ms, gateways_delivered -- of the running call; see batch.lua
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

-- ------------------------------------------------------------------------------------------------ limits of the key

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

-- Reserves; returns what to undo, as the lease carries it: {counter, period, slot, counted, reserved 2, reserved 3}.
-- A reservation of -1 says that the dimension is not limited, so that facts are not counted either.
local function reserve(name, c, per, bounds, need, charges)
  local charge = {name, per, c.slot, 0, -1, -1}
  if bounds[1] >= 0 and need[1] > 0 then
    add(c, 1, need[1], 0)
    charge[4] = need[1]
  end
  for dim = 2, 3 do
    if bounds[dim] >= 0 then
      add(c, dim, 0, need[dim])
      charge[3 + dim] = need[dim]
    end
  end
  charges[#charges + 1] = charge
end

-- ------------------------------------------------------------------------------------------------ choosing an account

-- The candidates' numbers in flight and health records, read at once.
local function read_candidates(q)
  local numbers, rests, benches = {}, {}, {}
  if not is_anyone_out() then
    for i, cand in ipairs(q.cands) do
      numbers[i] = 'a:' .. cand[1]
    end
    return redis.call('HMGET', NUMBERS, unpack(numbers)), {}, {}
  end
  for i, cand in ipairs(q.cands) do
    local account, group, class = cand[1], cand[2], cand[6]
    numbers[i] = 'a:' .. account
    benches[i] = account
    rests[2 * i - 1] = group
    rests[2 * i] = rest_field(group, class)
  end
  return redis.call('HMGET', NUMBERS, unpack(numbers)),
    redis.call('HMGET', RESTS, unpack(rests)),
    redis.call('HMGET', BENCHES, unpack(benches))
end

-- Why candidate `i` cannot be used now, until when, and (where it can) whether this request probes it.
local function unusable(q, i, known, now)
  local cand = q.cands[i]
  local probes = false
  for record = 1, 3 do
    local raw = record == 1 and known.benches[i] or record > 1 and known.rests[2 * i - 3 + record]
    local reason, until_ms, probe = kept_out(raw, now, lease_runs)
    if reason then
      return reason, until_ms
    end
    probes = probes or probe
  end
  local most = cand[3]
  if most > 0 and (tonumber(known.numbers[i]) or 0) >= most then
    return 'full', now + 1000
  end
  for j, cap in ipairs(cand[8]) do
    local c = open_counter(own('c:a:' .. cand[2] .. ':' .. cap[1]), cap[1], now)
    local bounds, need = {cap[2], cap[3], cap[4]}, {1, q.sizes[1], q.sizes[2]}
    local dim = overrun(c, bounds, need)
    if dim then
      return 'capped', fits_at(c, dim, bounds[dim], need[dim], now)
    end
    known.caps[i] = known.caps[i] or {}
    known.caps[i][j] = c
  end
  for j, limit in ipairs(cand[7]) do -- limits that only the name sent to this account falls under
    local c = open_counter(own('c:k:' .. q.key .. ':' .. limit[1]), limit[2], now)
    local worst = worst_limit(q, {limit}, {c}, now)
    if worst then
      return 'key_limit_' .. worst[2], worst[3]
    end
    known.extras[i] = known.extras[i] or {}
    known.extras[i][j] = c
  end
  return nil, probes
end

local function position(cands, account)
  for i, cand in ipairs(cands) do
    if cand[1] == account then
      return i
    end
  end
  return nil
end

-- The pinned account, its pin renewed; whoever talks keeps the pin alive, wherever the request is served.
local function read_pin(q)
  if q.session == '' then
    return nil
  elseif q.pin_ttl == 0 then
    return redis.call('GET', 'sb:pin:' .. q.session)
  end
  return redis.call('GETEX', 'sb:pin:' .. q.session, 'PX', q.pin_ttl)
end

-- Chooses: a table {index, pin note, probes} or a finished answer. Pin notes: '', hit, new, moved, full.
local function choose(q, known, now)
  local note, skip, pin_reason, pin_until = '', nil, nil, 0
  local pinned = read_pin(q)
  if q.session ~= '' then
    note = 'new'
  end
  if pinned then
    skip = position(q.cands, pinned)
    if not skip and pinned ~= q.hint then
      return nil, {'pin', pinned}
    end
    local reason, more = q.hint_state, 0
    if skip then
      reason, more = unusable(q, skip, known, now)
      if not reason then
        return {skip, 'hit', more}
      end
    end
    pin_reason, pin_until = reason, more
    if reason == 'elsewhere' then
      note = 'full'
    elseif q.bound == 1 or (q.refuse == 1 and reason ~= 'full' and reason ~= 'capped') then
      return nil, {'refused', reason, more}
    elseif reason == 'full' or reason == 'capped' then
      note = 'full'
    else
      note = 'moved'
    end
  end
  local why = {'none'}
  for i, cand in ipairs(q.cands) do
    local reason, more = 'draining', 0
    if i == skip then
      reason, more = pin_reason, pin_until
    elseif cand[9] == 0 then
      reason, more = unusable(q, i, known, now)
      if not reason then
        return {i, note, more}
      end
    end
    why[#why + 1] = reason
    why[#why + 1] = more
  end
  return nil, why
end

local function keep_pin(q, pool, account, note)
  local ttl = pool[2]
  if ttl > 0 and (note == 'new' or note == 'moved') then
    redis.call('SET', 'sb:pin:' .. q.session, account, 'PX', ttl)
  end
end

-- ------------------------------------------------------------------------------------------------ admit

-- Whether something that the decision rests on has changed since. Usually the whole registry has not; a caller that
-- keeps losing that race names the objects that matter.
local function is_stale(q)
  if #q.names == 0 then
    return registry_version ~= q.version and 'registry' or nil
  end
  local current = redis.call('HMGET', VERSIONS, unpack(q.names))
  for i, version in ipairs(q.versions) do
    if current[i] ~= version then
      return q.names[i]
    end
  end
  return nil
end

local function note_first_use(key)
  if known_first[key] then
    return
  end
  if known_first_count >= MOST_KNOWN_KEYS then
    known_first, known_first_count = {}, 0
  end
  known_first[key], known_first_count = true, known_first_count + 1
end

-- Commits the choice and returns the grant.
local function grant(q, picked, known, counters, kept, request, now)
  local i, note, probes = picked[1], picked[2], picked[3]
  local cand = q.cands[i]
  local account, group = cand[1], cand[2]
  local pool = q.pools[cand[4]]
  local charges = {}
  for j, limit in ipairs(q.limits) do
    reserve('k:' .. q.key .. ':' .. limit[1], counters[j], limit[2], {limit[3], limit[4], limit[5]}, need_of(q, limit),
      charges)
  end
  for j, c in ipairs(known.extras[i] or {}) do
    local limit = cand[7][j]
    reserve('k:' .. q.key .. ':' .. limit[1], c, limit[2], {limit[3], limit[4], limit[5]}, need_of(q, limit), charges)
  end
  for j, c in ipairs(known.caps[i] or {}) do
    local cap = cand[8][j]
    reserve('a:' .. group .. ':' .. cap[1], c, cap[1], {cap[2], cap[3], cap[4]}, {1, q.sizes[1], q.sizes[2]}, charges)
  end
  local head = {
    e = epoch, t = now, key = q.key, account = account, group = group, pool = pool[1], model = cand[5],
    class = cand[6], attempt = q.attempt, tried = q.tried, charges = charges, probe = probes, owner = q.owner,
  }
  local token = write_token(head, request)
  if probes then
    take_probe(BENCHES, account, known.benches[i], q.id)
    take_probe(RESTS, group, known.rests[2 * i - 1], q.id)
    if cand[6] ~= '' then
      take_probe(RESTS, rest_field(group, cand[6]), known.rests[2 * i], q.id)
    end
  end
  if not kept then
    redis.call('HINCRBY', NUMBERS, 'k:' .. q.key, 1)
  end
  local running = redis.call('HINCRBY', NUMBERS, 'a:' .. account, 1)
  redis.call('HSET', LEASES, q.id, token)
  redis.call('ZADD', EXPIRY, now + LEASE_TTL_MS, q.id)
  touched[account] = now
  keep_pin(q, pool, account, note)
  local first = known_first[q.key] and 0 or redis.call('HSETNX', FIRST_USES, q.key, now)
  note_first_use(q.key)
  return {'grant', i, note, token, first, running, reports(counters)}
end

-- `kept`: the key's slot is already taken by this request.
local function admit(q, request, now, kept)
  local existing = redis.call('HGET', LEASES, q.id)
  if existing then
    return {'again', existing}
  end
  local stale = is_stale(q)
  if stale then
    return {'stale', stale}
  end
  if q.life > 0 then
    local first = tonumber(redis.call('HGET', FIRST_USES, q.key))
    if first and now >= first + q.life then
      return {'deny', 'expired', 0, 0, 0, {}}
    end
  end
  if q.most > 0 and not kept and (tonumber(redis.call('HGET', NUMBERS, 'k:' .. q.key)) or 0) >= q.most then
    return {'deny', 'concurrency', 0, now + 1000, 0, {}}
  end
  local counters = open_limits(q, q.limits, now)
  local worst = worst_limit(q, q.limits, counters, now)
  if worst then
    return {'deny', 'limit_' .. worst[2], worst[1], worst[3], worst[4], reports(counters)}
  end
  if #q.cands == 0 then
    return {'none'}
  end
  local known = {caps = {}, extras = {}}
  known.numbers, known.rests, known.benches = read_candidates(q)
  local picked, answer = choose(q, known, now)
  if not picked then
    return answer
  end
  return grant(q, picked, known, counters, kept, request, now)
end

-- ------------------------------------------------------------------------------------------------ settle

local function drop_lease(id)
  redis.call('HDEL', LEASES, id, 'beat:' .. id)
  redis.call('ZREM', EXPIRY, id)
end

local function free_slot(field)
  local left = redis.call('HINCRBY', NUMBERS, field, -1)
  if left < 0 then
    redis.call('HSET', NUMBERS, field, 0)
  end
  return math.max(left, 0)
end

-- Whether the ledger's answer, from which the counters were rebuilt, already held an attempt of an earlier epoch.
local function was_in_ledger(head, q)
  return head.e ~= epoch and q.ended > 0 and q.ended < asked_ms and gateways_delivered(q.gateway)
end

-- Turns reservations into facts. `counted` and `reserved` say which parts of the charges the counters hold now.
local function charge(head, facts, counted, reserved)
  for _, c in ipairs(head.charges) do
    local name, per, slot = own('c:' .. c[1]), c[2], c[3]
    local fact = string.sub(c[1], 1, 1) == 'k' and {facts[1], facts[2]} or {facts[3], facts[4]}
    if counted ~= 0 and c[4] > 0 then
      adjust(name, per, slot, 1, counted * c[4], 0)
    end
    for dim = 2, 3 do
      local held = c[2 + dim + 1]
      if held >= 0 then
        adjust(name, per, slot, dim, fact[dim - 1], reserved and -held or 0)
      end
    end
  end
end

-- What was charged for a lease that a later word on it could charge again: reaped ones and those of earlier epochs.
local function tombstone(id)
  return own('tomb:' .. id)
end

local function bury(q)
  redis.call('SET', tombstone(q.id), cmsgpack.pack({q.tokens, q.cost, q.input, q.output}), 'PX', TOMB_TTL_MS)
end

-- Counters that a recreated lease or a late settlement is charged to may not exist yet.
local function ensure_counters(head, now)
  for _, c in ipairs(head.charges) do
    local counter = open_counter(own('c:' .. c[1]), c[2], now)
    if counter.fresh then
      add(counter, 1, 0, 0)
    end
  end
end

local function settle_unknown(q, head, now)
  local facts = {q.tokens, q.cost, q.input, q.output}
  local before = redis.call('GET', tombstone(q.id))
  if before then -- the reaper was there first; only the difference counts
    local charged = cmsgpack.unpack(before)
    for i = 1, 4 do
      facts[i] = facts[i] - charged[i]
    end
    charge(head, facts, 0, false)
  elseif head.e ~= epoch then
    redis.call('HDEL', 'sb:' .. head.e .. ':leases', q.id)
    if not was_in_ledger(head, q) then
      ensure_counters(head, now)
      charge(head, facts, 1, false)
    end
  else
    return {'known'}
  end
  bury(q)
  return {'late'}
end

-- Ends a lease; `keep_slot` leaves the key's slot taken. Repeating it changes nothing.
local function settle(q, token, now, keep_slot)
  local stored = redis.call('HGET', LEASES, q.id)
  if not stored then
    return settle_unknown(q, read_token(token), now)
  end
  local head = read_token(stored)
  head.id, head.admitted = q.id, head.t
  drop_lease(q.id)
  if not keep_slot then
    free_slot('k:' .. head.key)
  end
  local running = free_slot('a:' .. head.account)
  if was_in_ledger(head, q) then
    charge(head, {0, 0, 0, 0}, -1, true)
  else
    charge(head, {q.tokens, q.cost, q.input, q.output}, 0, true)
  end
  if head.e ~= epoch then
    bury(q)
  end
  if apply_effect(head, q.effect, q.ok == 1, now) then
    announce(head.account)
  end
  touched[head.account] = now
  if #q.windows > 0 then
    redis.call('HSET', 'sb:windows:' .. head.group, unpack(q.windows))
  end
  return {'settled', head.account, running}
end

-- Settles the failed attempt and admits the next one of the same request. Until that is decided (`last` 0: there are
-- more candidates) the key's slot is held under the failed lease's id; the reaper frees it should nobody come back.
local function retry(q, token, request, now)
  local held = own('held')
  local kept = redis.call('HGET', held, q.failed.id) and true or false
  if not kept then
    kept = settle(q.failed, token, now, true)[1] == 'settled'
  end
  local answer = admit(q, request, now, kept)
  local kind = answer[1]
  if kept and (kind == 'stale' or kind == 'pin' or (kind == 'none' and q.last == 0)) then
    redis.call('HSET', held, q.failed.id, q.key)
    redis.call('ZADD', EXPIRY, now + LEASE_TTL_MS, q.failed.id)
    return answer
  end
  if kept then
    redis.call('HDEL', held, q.failed.id)
    redis.call('ZREM', EXPIRY, q.failed.id)
    if kind ~= 'grant' and kind ~= 'again' then
      free_slot('k:' .. q.key)
    end
  end
  return answer
end

-- ------------------------------------------------------------------------------------------------ heartbeats, reaping

local function recreate(id, token, head, now)
  ensure_counters(head, now)
  for _, c in ipairs(head.charges) do
    local name = own('c:' .. c[1])
    if c[4] > 0 then
      adjust(name, c[2], c[3], 1, c[4], 0)
    end
    for dim = 2, 3 do
      if c[3 + dim] > 0 then
        adjust(name, c[2], c[3], dim, 0, c[3 + dim])
      end
    end
  end
  redis.call('HINCRBY', NUMBERS, 'k:' .. head.key, 1)
  redis.call('HINCRBY', NUMBERS, 'a:' .. head.account, 1)
  redis.call('HSET', LEASES, id, token)
  redis.call('HDEL', 'sb:' .. head.e .. ':leases', id)
end

local function beat(q, token, progress, now)
  if not lease_runs(q.id) then
    local head = read_token(token)
    if head.e == epoch or redis.call('EXISTS', tombstone(q.id)) == 1 then
      return {'gone'}
    end
    recreate(q.id, token, head, now)
  end
  redis.call('ZADD', EXPIRY, now + LEASE_TTL_MS, q.id)
  if progress ~= '' then
    redis.call('HSET', LEASES, 'beat:' .. q.id, progress)
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
      redis.call('ZREM', EXPIRY, id)
      free_slot('k:' .. key)
    else
      out[#out + 1] = {id, redis.call('HGET', LEASES, id), redis.call('HGET', LEASES, 'beat:' .. id) or ''}
    end
  end
  return out
end

-- Settles a lease that is still expired and keeps its event until the ledger has it.
local function reap(q, event, now)
  local expires = tonumber(redis.call('ZSCORE', EXPIRY, q.id))
  if not expires or expires > now then
    return {'renewed'}
  end
  settle(q, '', now, false)
  bury(q)
  redis.call('HSET', 'sb:orphans', q.id, event)
  return {'reaped'}
end
