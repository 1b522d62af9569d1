-- Settling: reservations become facts, once, whatever was lost or came too late; what it means for the account.

-- Whether the ledger's answer, from which the counters were rebuilt, held an attempt of an earlier epoch without naming
-- it: one that ended long before, of a gateway whose journal the ledger had. All others that it held were named.
local function was_in_ledger(head, q)
  return head.e ~= epoch and q.ended > 0 and q.ended < asked_ms and was_heard(q.gateway)
end

local KEYS_FIRST = 0x6b -- 'k', with which the names of keys' counters begin

-- Turns reservations into facts. `counted` and `reserved` say which parts of the charges the counters hold now.
local function charge(head, facts, counted, reserved, now)
  for _, c in ipairs(head.charges) do
    local counter, slot = open_counter(c[1], c[2], now), c[3]
    local first = string.byte(c[1]) == KEYS_FIRST and 1 or 3 -- of the facts that this counter counts
    if counted ~= 0 and c[4] > 0 then
      adjust(counter, slot, 1, counted * c[4], 0)
    end
    for dim = 2, 3 do
      local reservation = c[3 + dim]
      if reservation >= 0 then
        adjust(counter, slot, dim, facts[first + dim - 2], reserved and -reservation or 0)
      end
    end
  end
end

-- What was charged for a lease that a later word on it could charge again: reaped ones and those of earlier epochs.
local function tombstone(id)
  return own('tomb:' .. id)
end

local function set_tombstone(id, facts)
  redis.call('SET', tombstone(id), cmsgpack.pack(facts), 'PX', TOMB_TTL_MS)
end

local function bury(q)
  set_tombstone(q.id, {q.tokens, q.cost, q.input, q.output})
end

-- What `q` tells beyond what was charged already, as its tombstone says.
local function difference(q, tomb)
  local charged = cmsgpack.unpack(tomb)
  return {q.tokens - charged[1], q.cost - charged[2], q.input - charged[3], q.output - charged[4]}
end

-- Attempts that the rebuilt counters hold and that may be settled yet: {lease, tokens, nano-dollars, input, output}.
local function told(q)
  for _, row in ipairs(q.rows) do
    set_tombstone(row[1], {row[2], row[3], row[4], row[5]})
  end
  return {'told'}
end

-- Counters that a recreated lease or a late settlement is charged to may not exist yet.
local function ensure_counters(head, now)
  for _, c in ipairs(head.charges) do
    begin_period(open_counter(c[1], c[2], now))
  end
end

local function settle_unknown(q, head, now)
  local tomb = redis.call('GET', tombstone(q.id))
  if tomb then -- the reaper was there first, or the ledger; only the difference counts
    charge(head, difference(q, tomb), 0, false, now)
  elseif head.e ~= epoch then
    redis.call('HDEL', 'sb:' .. head.e .. ':leases', q.id)
    if q.unused ~= 1 and not was_in_ledger(head, q) then
      ensure_counters(head, now)
      charge(head, {q.tokens, q.cost, q.input, q.output}, 1, false, now)
    end
  else
    return {'known'}
  end
  bury(q)
  return {'late'}
end

-- Ends a lease; `keep_slot` leaves the key's slot taken. Repeating it changes nothing.
local function settle(q, token, now, keep_slot)
  local stored = lease_of(q.id)
  if not stored and token == '' then -- was not granted, or not yet, or is given back already
    if q.unused == 1 then
      forgo(q.id, now)
    end
    return {'known'}
  elseif not stored then
    return settle_unknown(q, read_token(token), now)
  end
  local head = read_token(stored)
  forget_head(stored)
  head.id = q.id
  drop_lease(q.id)
  look_at('k:' .. head.key, 'a:' .. head.account)
  if not keep_slot then
    count('k:' .. head.key, -1)
  end
  local running = count('a:' .. head.account, -1)
  local tomb = head.e ~= epoch and redis.call('GET', tombstone(q.id))
  if tomb and q.unused ~= 1 then -- the ledger had told of it before it was recreated, or after
    charge(head, difference(q, tomb), -1, true, now)
  elseif q.unused == 1 or was_in_ledger(head, q) then -- no row will tell of it, or one has told already
    charge(head, {0, 0, 0, 0}, -1, true, now)
  else
    charge(head, {q.tokens, q.cost, q.input, q.output}, 0, true, now)
  end
  if head.e ~= epoch then
    bury(q)
  end
  if apply_effect(head, q.effect, q.ok == 1, now) then
    announce(head.account)
  end
  touched[head.account] = now
  tell_of_room(head.account, now)
  if #q.windows > 0 then
    redis.call('HSET', 'sb:windows:' .. head.group, unpack(q.windows))
  end
  return {'settled', head.account, running}
end

local FINAL = {grant = true, again = true, deny = true, forgone = true}

-- Settles the failed attempt and admits the next one of the same request. Until that is decided (`last` 0: the request
-- waits, or there are more candidates) the key's slot is held under the failed lease's id; the reaper frees it should
-- nobody come back.
local function retry(q, token, request, now)
  local held = own('held')
  local kept = redis.call('HGET', held, q.failed.id) and true or false
  if not kept then
    kept = settle(q.failed, token, now, true)[1] == 'settled'
  end
  local answer = admit(q, request, now, kept)
  local kind = answer[1]
  if kept and q.last == 0 and not FINAL[kind] then
    redis.call('HSET', held, q.failed.id, q.key)
    set_end(q.failed.id, now + LEASE_TTL_MS)
    return answer
  end
  if kept then
    redis.call('HDEL', held, q.failed.id)
    set_end(q.failed.id, false)
    if kind ~= 'grant' then -- 'again': that lease has a slot of its own
      count('k:' .. q.key, -1)
    end
  end
  return answer
end
