-- Admitting: checks, an account, a pin, reservations and a lease, all or nothing.
-- The scheduler ranks accounts beforehand and says in `q` what may be granted; nothing here is a matter of taste.

-- Reserves; appends what to undo, as the lease carries it: {counter, period, slot, counted, reserved 2, reserved 3}.
-- A reservation of -1 says that the dimension is not limited, so that facts are not counted either.
local function reserve(c, limit, need, charges)
  local counted, second, third = 0, -1, -1
  if limit[1] >= 0 and need[1] > 0 then
    counted = need[1]
    add(c, 1, counted, 0)
  end
  if limit[2] >= 0 then
    second = need[2]
    add(c, 2, 0, second)
  end
  if limit[3] >= 0 then
    third = need[3]
    add(c, 3, 0, third)
  end
  charges[#charges + 1] = {c.name, limit.per, c.slot, counted, second, third}
end

-- The candidates' health records, read at once: rests (two each) and benches.
local function read_candidates(q)
  if not is_anyone_out() then
    return NONE, NONE
  end
  local rests, benches = {}, {}
  for i, cand in ipairs(q.cands) do
    benches[i] = cand.account
    rests[2 * i - 1] = cand.group
    rests[2 * i] = rest_field(cand.group, cand.class)
  end
  return redis.call('HMGET', RESTS, unpack(rests)), redis.call('HMGET', BENCHES, unpack(benches))
end

local DIMENSION_NAMES = {'requests', 'tokens', 'cost'}

-- Why candidate `i` cannot be used now and until when (0: time alone makes no room); nil where it can, and whether this
-- request probes it then.
local function unusable(q, i, rests, benches, now)
  local cand = q.cands[i]
  local probes = false
  for record = 1, 3 do
    local raw = record == 1 and benches[i] or record > 1 and rests[2 * i - 3 + record]
    local reason, until_ms, probe = kept_out(raw, now, lease_runs)
    if reason then
      return reason, until_ms
    end
    probes = probes or probe
  end
  local most = cand.most
  if most > 0 and (in_flight('a:' .. cand.account) >= most
      or q.turn == 0 and someone_waits(now) and is_awaited('@' .. cand.account, now)) then
    return 'full', now + 1000
  end
  for _, cap in ipairs(cand.caps) do
    local c = open_counter(cap.name, cap.per, now)
    local dim = overrun(c, cap, q.sizes)
    if dim then
      if q.sizes[dim] > cap[dim] then
        return 'too_large', 0
      end
      return 'capped', fits_at(c, dim, cap[dim], q.sizes[dim], now)
    end
  end
  for _, limit in ipairs(cand.limits) do -- limits that only the name sent to this account falls under
    local c = open_counter(key_counter(q, limit), limit.per, now)
    local worst = worst_limit(q, {limit}, {c}, now)
    if worst then
      return 'key_limit_' .. DIMENSION_NAMES[worst[2]] .. ' ' .. limit.name, worst[4] == 1 and 0 or worst[3]
    end
  end
  return nil, probes
end

local function position(cands, account)
  for i, cand in ipairs(cands) do
    if cand.account == account then
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

-- Chooses: index, pin note, probes, why not the pinned one, why not those before; or nil and a finished answer.
-- Pin notes: '', hit, new, moved, full.
-- A full pinned account is answered with 'patience': the request may wait for it, and says `hurry` when it will not.
local function choose(q, rests, benches, now)
  local note, skip, pin_reason, pin_until = '', nil, '', 0
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
      reason, more = unusable(q, skip, rests, benches, now)
      if not reason then
        return skip, 'hit', more, '', NONE
      end
    end
    pin_reason, pin_until = reason, more
    local refuses = q.refuse
    if skip then
      refuses = q.pools[q.cands[skip].pool][3]
    end
    local is_full = reason == 'full' or reason == 'capped' or reason == 'too_large'
    if is_full and q.hurry == 0 then
      return nil, {'patience', reason, more}
    elseif reason == 'elsewhere' then
      note = 'full'
    elseif q.bound == 1 or (refuses == 1 and not is_full) then
      return nil, {'refused', reason, more}
    elseif is_full then
      note = 'full'
    else
      note = 'moved'
    end
  end
  local passed = {} -- reason and until when, for each candidate that was looked at in vain
  for i, cand in ipairs(q.cands) do
    local reason, more = 'draining', 0
    if i == skip then
      reason, more = pin_reason, pin_until
    elseif not cand.draining then
      reason, more = unusable(q, i, rests, benches, now)
      if not reason then
        return i, note, more, pin_reason, passed
      end
    end
    passed[#passed + 1] = reason
    passed[#passed + 1] = more
  end
  return nil, {'none', passed}
end

local function keep_pin(q, pool, account, note)
  local ttl = pool[2]
  if ttl > 0 and (note == 'new' or note == 'moved') then
    redis.call('SET', 'sb:pin:' .. q.session, account, 'PX', ttl)
  end
end

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

-- Commits a choice and returns the grant.
local function grant(q, counters, kept, request, now, rests, benches, i, note, probes, pin_reason, passed)
  local cand = q.cands[i]
  local account, group = cand.account, cand.group
  local pool = q.pools[cand.pool]
  local charges = {}
  for j, limit in ipairs(q.limits) do
    reserve(counters[j], limit, need_of(q, limit), charges)
  end
  for _, limit in ipairs(cand.limits) do
    reserve(open_counter(key_counter(q, limit), limit.per, now), limit, need_of(q, limit), charges)
  end
  for _, cap in ipairs(cand.caps) do
    reserve(open_counter(cap.name, cap.per, now), cap, q.sizes, charges)
  end
  local token = write_token(q, now, pool[1], cand, probes, charges, request)
  if probes then
    take_probe(BENCHES, account, benches[i], q.id)
    take_probe(RESTS, group, rests[2 * i - 1], q.id)
    if cand.class ~= '' then
      take_probe(RESTS, rest_field(group, cand.class), rests[2 * i], q.id)
    end
  end
  if not kept then
    count('k:' .. q.key, 1)
  end
  local running = count('a:' .. account, 1)
  keep_lease(q.id, token)
  set_end(q.id, now + LEASE_TTL_MS)
  touched[account] = now
  keep_pin(q, pool, account, note)
  if q.turn == 1 then
    had_turn(q.key)
  end
  local first = known_first[q.key] and 0 or redis.call('HSETNX', FIRST_USES, q.key, now)
  note_first_use(q.key)
  return {'grant', i, note, token, first, running, packed_reports(counters), pin_reason, passed}
end

-- `kept`: the key's slot is already taken by this request.
local function admit(q, request, now, kept)
  local existing = lease_of(q.id)
  if existing then
    return {'again', existing}
  end
  if was_forgone(q.id, now) then
    return {'forgone'}
  end
  local stale = is_stale(q)
  if stale then
    return {'stale', stale}
  end
  if q.life > 0 then
    local first = tonumber(redis.call('HGET', FIRST_USES, q.key))
    if first and now >= first + q.life then
      return {'deny', 'expired', 0, 0, 0, ''}
    end
  end
  if q.most > 0 and not kept and in_flight('k:' .. q.key) >= q.most then
    return {'deny', 'concurrency', 0, now + 1000, 0, ''}
  end
  local counters = open_limits(q, q.limits, now)
  local worst = worst_limit(q, q.limits, counters, now)
  if worst then
    return {'deny', 'limit_' .. worst[2], worst[1], worst[3], worst[4], packed_reports(counters)}
  end
  if #q.cands == 0 then
    return {'none', NONE}
  end
  if q.turn == 0 and someone_waits(now) and awaited_lane(q.cands, q.pools, now) then
    return {'behind'}
  end
  local rests, benches = read_candidates(q)
  local i, note, probes, pin_reason, passed = choose(q, rests, benches, now)
  if not i then
    return note -- the answer
  end
  return grant(q, counters, kept, request, now, rests, benches, i, note, probes, pin_reason, passed)
end
