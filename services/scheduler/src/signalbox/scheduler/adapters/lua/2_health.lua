-- Whether accounts may be used now: rests and cool-downs (per limit group and model class) and benches (per account).
-- A failing account gets at most one probing request at a time; who is asked in which order is decided elsewhere.
--
-- One packed record each: k kind (limited, cooling, benched), w reason, u until (Unix ms), a when it was set, f failures
-- in a row (0: the end is known and needs no probe), p the lease that probes now ('' none).

local RESTS = 'sb:rests'     -- field <group> or <group>|<model class>
local BENCHES = 'sb:benches' -- field <account>: benched, or cooling alone for what is no fault of its group
local NEVER_MS = 9000000000000
local FIRST_DELAY_MS = {limited = 5000, cooling = 1000, benched = 300000}
local LONGEST_DELAY_MS = {limited = 60000, cooling = 20000, benched = 3600000}

local function rest_field(group, class)
  return class == '' and group or group .. '|' .. class
end

-- Reason and end for which a record keeps its account out now; nil, nil and whether it must be probed where it does not.
local function kept_out(raw, now, probe_runs)
  if not raw then
    return nil, nil, false
  end
  local rec = cmsgpack.unpack(raw)
  if now < rec.u then
    return rec.k, rec.u, false
  end
  if rec.f == 0 then
    return nil, nil, false
  end
  if rec.p ~= '' and probe_runs(rec.p) then
    return 'probing', now + 1000, false
  end
  return nil, nil, true
end

-- Whether anything is kept out at all; usually nothing is, and nobody's records need be read.
local anyone_out

local function is_anyone_out()
  if anyone_out == nil then
    anyone_out = redis.call('EXISTS', RESTS, BENCHES) > 0
  end
  return anyone_out
end

local function take_probe(hash, field, raw, lease)
  if raw then
    local rec = cmsgpack.unpack(raw)
    if rec.f > 0 then
      rec.p = lease
      redis.call('HSET', hash, field, cmsgpack.pack(rec))
    end
  end
end

local HEALTH = 'sb:health' -- counts the changes of RESTS and BENCHES, so that nobody reads them for nothing

local function announce(account)
  redis.call('INCR', HEALTH)
  redis.call('PUBLISH', 'sb:events', account)
end

-- Records a failure. `until_ms` 0: a back-off that doubles with each failure in a row, shortened by up to a quarter.
local function keep_out(hash, field, kind, reason, until_ms, jitter, lease, now)
  local raw = redis.call('HGET', hash, field)
  local rec = raw and cmsgpack.unpack(raw) or {k = kind, w = reason, u = 0, a = 0, f = 0, p = ''}
  if rec.p == lease.id then
    rec.p = ''
  end
  if until_ms == 0 then
    -- Failures of requests that were under way when the rest began are the same failure.
    if lease.admitted >= rec.a or rec.f == 0 then
      rec.f = rec.f + 1
    end
    local delay = math.min(FIRST_DELAY_MS[kind] * 2 ^ (math.min(rec.f, 20) - 1), LONGEST_DELAY_MS[kind])
    until_ms = now + math.floor(delay * (1 - 0.25 * jitter))
  end
  if until_ms > rec.u then
    rec.u, rec.k, rec.w = until_ms, kind, reason
  end
  rec.a = now
  anyone_out = true
  redis.call('HSET', hash, field, cmsgpack.pack(rec))
end

-- A probing lease ended without a failure of the account: `ok` heals, anything else lets the next request probe.
local function end_probe(hash, field, lease, ok)
  local raw = redis.call('HGET', hash, field)
  if not raw then
    return false
  end
  local rec = cmsgpack.unpack(raw)
  if ok and lease.admitted >= rec.a then
    redis.call('HDEL', hash, field)
    return true
  end
  if rec.p == lease.id then
    rec.p = ''
    redis.call('HSET', hash, field, cmsgpack.pack(rec))
  end
  return false
end

-- What a lease's end means for its account. `effect`: {kind, reason, until, model class, jitter 0..1}; returns whether
-- the account's availability changed.
local function apply_effect(lease, effect, ok, now)
  local kind, reason, until_ms, class, jitter = unpack(effect)
  if kind == 'bench' then
    keep_out(BENCHES, lease.account, 'benched', reason, until_ms, jitter, lease, now)
  elseif kind == 'rest' then
    keep_out(RESTS, rest_field(lease.group, class), 'limited', reason, until_ms, jitter, lease, now)
  elseif kind == 'cool' then
    keep_out(RESTS, rest_field(lease.group, class), 'cooling', reason, until_ms, jitter, lease, now)
  elseif kind == 'cool_account' then
    keep_out(BENCHES, lease.account, 'cooling', reason, until_ms, jitter, lease, now)
  elseif lease.probe then
    local healed = end_probe(BENCHES, lease.account, lease, ok)
    healed = end_probe(RESTS, lease.group, lease, ok) or healed
    if lease.class ~= '' then
      healed = end_probe(RESTS, rest_field(lease.group, lease.class), lease, ok) or healed
    end
    return healed
  end
  return kind ~= ''
end
