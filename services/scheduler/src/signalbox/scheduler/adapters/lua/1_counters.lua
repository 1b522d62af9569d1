-- Counters of limits: what was used and what is reserved, per period, in one hash each.
-- Minute and Hour slide in 60 buckets, the oldest counted whole; Day, Week, Month follow the UTC calendar; Total never
-- ends. Who is limited, and what happens when a limit is full, is 4_admitting.lua's business.
--
-- Fields: p the newest bucket, or the start of the calendar period; o the oldest bucket that holds something;
-- u1..u3 used and r1..r3 reserved in the whole period; u1:<bucket> and so on in one bucket.
-- Dimensions: 1 requests; 2 tokens (accounts: input tokens); 3 nano-dollars (accounts: output tokens).
-- All numbers are integers below 2^53, which doubles hold exactly and redis.call writes with 17 digits. Buckets and
-- milliseconds have fewer than 14, so that they may also be joined to names.
--
-- A call reads each counter once and writes what its operations added once, at its end: batches are about few keys.
-- Counters go by their names here, k:<key>:<limit> and a:<group>:<period>; their keys belong to the running epoch.

local BUCKETS = 60
local WIDTH_MS = {Minute = 1000, Hour = 60000}
local DAY_MS = 86400000
local DIMENSIONS = 3
local SUMS = {'u1', 'u2', 'u3', 'r1', 'r2', 'r3'}
local USED, RESERVED = 0, 3 -- before the dimension, the place of a sum among SUMS

local COUNTERS = '' -- what the keys begin with; see use_epoch
local opened, unwritten -- of the running call, by name: counters; those of them that Redis does not hold as they are

local function forget_counters()
  opened, unwritten = {}, {}
end

local function write_counter(c)
  if not unwritten[c.name] then
    return
  end
  unwritten[c.name] = nil
  local changed, sums = c.changed, {}
  for i = 1, #SUMS do
    if changed[i] then
      sums[#sums + 1] = SUMS[i]
      sums[#sums + 1] = c.sums[i]
    end
  end
  redis.call('HSET', c.key, unpack(sums))
  for slot, amounts in pairs(c.buckets) do
    for i = 1, #SUMS do
      if amounts[i] ~= 0 then
        redis.call('HINCRBY', c.key, SUMS[i] .. ':' .. slot, amounts[i])
      end
    end
  end
  c.changed, c.buckets = {}, {}
end

local function write_counters()
  for _, c in pairs(unwritten) do
    write_counter(c)
  end
end

-- First day of the month that holds `day` (both counted from 1970-01-01), by the proleptic Gregorian calendar.
local function month_start(day)
  local z = day + 719468 -- days from 0000-03-01
  local era = math.floor(z / 146097)
  local of_era = z - era * 146097
  local year = math.floor(
    (of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  return day - (of_year - math.floor((153 * month + 2) / 5))
end

-- Start and end of the calendar period around `now`, Unix milliseconds; the end of Total is 0.
local function calendar(per, now)
  local day = math.floor(now / DAY_MS)
  if per == 'Day' then
    return day * DAY_MS, (day + 1) * DAY_MS
  elseif per == 'Week' then
    local monday = day - (day + 3) % 7 -- 1970-01-01 was a Thursday
    return monday * DAY_MS, (monday + 7) * DAY_MS
  elseif per == 'Month' then
    local first = month_start(day)
    return first * DAY_MS, month_start(first + 32) * DAY_MS
  end
  return 0, 0
end

-- Removes the buckets that left the window from the sums.
local function slide(c)
  local last_gone = c.slot - BUCKETS - 1
  local fields = redis.call('HGETALL', c.key)
  local gone, oldest = {}, nil
  for i = 1, #fields, 2 do
    local kind, dim, bucket = string.match(fields[i], '^([ur])(%d):(%d+)$')
    if bucket then
      bucket = tonumber(bucket)
      if bucket <= last_gone then
        local place = (kind == 'u' and USED or RESERVED) + tonumber(dim)
        c.sums[place] = c.sums[place] - tonumber(fields[i + 1])
        gone[#gone + 1] = fields[i]
      elseif not oldest or bucket < oldest then
        oldest = bucket
      end
    end
  end
  if #gone > 0 then
    redis.call('HDEL', c.key, unpack(gone))
  end
  c.o = oldest
end

local function store_sums(c)
  local pairs_ = {'p', c.slot, 'o', c.o or ''}
  for i = 1, #SUMS do
    pairs_[#pairs_ + 1] = SUMS[i]
    pairs_[#pairs_ + 1] = c.sums[i]
  end
  redis.call('HSET', c.key, unpack(pairs_))
  if c.width then
    redis.call('PEXPIRE', c.key, (BUCKETS + 2) * c.width)
  elseif c.ends > 0 then
    redis.call('PEXPIREAT', c.key, c.ends)
  end
end

-- The counter `name`, brought up to `now`; `fresh`: Redis holds nothing of its period. `sums` are in the order of SUMS;
-- `changed` says which of them are to be written, `buckets` what is to be added to which.
local function open_counter(name, per, now)
  local c = opened[name]
  if c then
    return c
  end
  local key = COUNTERS .. name
  local v = redis.call('HMGET', key, 'p', 'o', unpack(SUMS))
  c = {
    name = name, key = key, width = WIDTH_MS[per] or false, o = tonumber(v[2]), slot = 0, ends = 0, fresh = false,
    sums = {tonumber(v[3]) or 0, tonumber(v[4]) or 0, tonumber(v[5]) or 0, tonumber(v[6]) or 0, tonumber(v[7]) or 0,
      tonumber(v[8]) or 0},
    changed = {}, buckets = {},
  }
  opened[name] = c
  if c.width then
    c.slot = math.floor(now / c.width)
  else
    c.slot, c.ends = calendar(per, now)
  end
  local stored = tonumber(v[1])
  if not stored then
    c.fresh = true
  elseif stored > c.slot then
    c.slot = stored -- the server's clock stepped back
  elseif stored < c.slot then
    if c.width and c.slot - stored <= BUCKETS then
      slide(c)
      store_sums(c) -- at once: whoever only looks must not leave sums of buckets that are gone
    else
      redis.call('DEL', key)
      c.sums, c.o, c.fresh = {0, 0, 0, 0, 0, 0}, nil, true
    end
  end
  return c
end

-- Adds to a sum, and to its bucket where there are any.
local function increase(c, slot, place, amount)
  if amount == 0 then
    return
  end
  c.sums[place], c.changed[place] = c.sums[place] + amount, true
  unwritten[c.name] = c
  if c.width then
    local amounts = c.buckets[slot]
    if not amounts then
      amounts = {0, 0, 0, 0, 0, 0}
      c.buckets[slot] = amounts
    end
    amounts[place] = amounts[place] + amount
  end
end

-- Begins the counter's period where nothing is held of it.
local function begin_period(c)
  if c.fresh then
    c.o, c.fresh = c.width and c.slot or nil, false
    store_sums(c)
  end
end

-- Adds to one dimension in the current period.
local function add(c, dim, used, reserved)
  begin_period(c)
  if c.width and not c.o then
    c.o = c.slot
    redis.call('HSET', c.key, 'o', c.o)
  end
  increase(c, c.slot, USED + dim, used)
  increase(c, c.slot, RESERVED + dim, reserved)
end

-- Adds to the period (bucket or calendar start) that an earlier grant was charged to; nothing where it has passed.
local function adjust(c, slot, dim, used, reserved)
  if c.fresh or (c.width and slot < c.slot - BUCKETS) or (not c.width and slot ~= c.slot) then
    return
  end
  increase(c, slot, USED + dim, used)
  increase(c, slot, RESERVED + dim, reserved)
end

-- What is used and reserved of a dimension.
local function held(c, dim)
  return c.sums[USED + dim] + c.sums[RESERVED + dim]
end

-- First dimension whose limit (-1: none) leaves no room for `need`, or nil.
local function overrun(c, limits, need)
  for dim = 1, DIMENSIONS do
    local limit = limits[dim]
    if limit >= 0 and need[dim] > 0 and held(c, dim) + need[dim] > limit then
      return dim
    end
  end
  return nil
end

-- When `need` will fit, Unix milliseconds; 0 where time alone will not make room. What is reserved may be given back
-- sooner, so a limit that only reservations fill is worth another try after a second.
local function fits_at(c, dim, limit, need, now)
  if need > limit then
    return 0
  end
  if not c.width then
    if c.sums[USED + dim] + need <= limit then
      return now + 1000
    end
    return c.ends
  end
  write_counter(c)
  local fields, by_bucket, order = redis.call('HGETALL', c.key), {}, {}
  for i = 1, #fields, 2 do
    local of, bucket = string.match(fields[i], '^[ur](%d):(%d+)$')
    if of and tonumber(of) == dim then
      bucket = tonumber(bucket)
      if not by_bucket[bucket] then
        by_bucket[bucket] = 0
        order[#order + 1] = bucket
      end
      by_bucket[bucket] = by_bucket[bucket] + tonumber(fields[i + 1])
    end
  end
  table.sort(order)
  local left = held(c, dim)
  for _, bucket in ipairs(order) do
    left = left - by_bucket[bucket]
    if left + need <= limit then
      return (bucket + BUCKETS + 1) * c.width
    end
  end
  return now + c.width
end

-- Used and reserved of each dimension, and when the period or its oldest bucket ends (0: never).
local function report(c)
  local sums, resets = c.sums, c.ends
  if c.width then
    resets = c.o and (c.o + BUCKETS + 1) * c.width or 0
  end
  return sums[1], sums[4], sums[2], sums[5], sums[3], sums[6], resets
end
