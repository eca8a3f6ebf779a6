"""How figures lie in Redis, and the two scripts that change them there, each in one step.

Below the prefix: `stats:1m:NUMBER:counts` and `stats:10m:NUMBER:sketches` and so on, hashes of a slot, by series;
`stats:report:PROCESS`, the number of the last report of a process; `stats:processes`, when each reported last;
`stats:slow`, a list of the last slow operations; `stats:reset`, when everything began anew. NUMBER is Redis' time
divided by the length of the slot.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resolution:
    """Slots of one length, in seconds, and how long they are kept."""

    name: str
    slot: int
    kept: int


FINE = Resolution("1m", 60, 3_600)
COARSE = Resolution("10m", 600, 86_400)
MOST_MINUTES = COARSE.kept // 60

# One report, added in one step. Numbers come and are kept as text: as JSON, Lua would round them to 14 digits.
# TIME before a write needs `replicate_commands` up to Redis 6; later ones always do it so.
ADD = """
if redis.replicate_commands then redis.replicate_commands() end
local base = KEYS[1]
local process, number, report = ARGV[1], tonumber(ARGV[2]), cjson.decode(ARGV[3])
local seen = base .. 'report:' .. process
if tonumber(redis.call('GET', seen) or '0') >= number then return 0 end
redis.call('SET', seen, number, 'EX', 3600)
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local at = now - report.age
if at < tonumber(redis.call('GET', base .. 'reset') or '0') then return 0 end
redis.call('ZADD', base .. 'processes', now, process)
redis.call('ZREMRANGEBYSCORE', base .. 'processes', '-inf', now - report.kept)
redis.call('EXPIRE', base .. 'processes', report.kept)
for _, resolution in ipairs(report.resolutions) do
  local name, length, kept = resolution[1], resolution[2], resolution[3]
  if now - at < kept then
    local slot = base .. name .. ':' .. string.format('%d', math.floor(at / length))
    local ends = math.ceil(kept + 2 * length - (now - at))
    local counts, sketches = slot .. ':counts', slot .. ':sketches'
    local room = report.most_counts - redis.call('HLEN', counts)
    local scarce = room < #report.counts
    for _, count in ipairs(report.counts) do
      local known = not scarce or redis.call('HEXISTS', counts, count[1]) == 1
      if known or room > 0 then redis.call('HINCRBYFLOAT', counts, count[1], count[2]) end
      if not known then room = room - 1 end
    end
    redis.call('EXPIRE', counts, ends)
    room = report.most_sketches - redis.call('HLEN', sketches)
    for _, sketch in ipairs(report.sketches) do
      local series, total, least, greatest, buckets = unpack(sketch)
      local held = redis.call('HGET', sketches, series)
      local sum = held and cjson.decode(held)
      if not sum and room > 0 then
        sum = {total = '0', least = least, greatest = greatest, buckets = {}}
        room = room - 1
      end
      if sum then
        sum.total = string.format('%.17g', sum.total + total)
        if tonumber(least) < tonumber(sum.least) then sum.least = least end
        if tonumber(greatest) > tonumber(sum.greatest) then sum.greatest = greatest end
        for bucket, number in pairs(buckets) do sum.buckets[bucket] = (sum.buckets[bucket] or 0) + number end
        redis.call('HSET', sketches, series, cjson.encode(sum))
      end
    end
    redis.call('EXPIRE', sketches, ends)
  end
end
for _, slow in ipairs(report.slow) do redis.call('LPUSH', base .. 'slow', slow) end
if #report.slow > 0 then
  redis.call('LTRIM', base .. 'slow', 0, report.most_slow - 1)
  redis.call('EXPIRE', base .. 'slow', report.kept)
end
return 1
"""

RESET = """
if redis.replicate_commands then redis.replicate_commands() end
local base = KEYS[1]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
for _, resolution in ipairs(cjson.decode(ARGV[1])) do
  local name, length, kept = resolution[1], resolution[2], resolution[3]
  redis.call('SET', base .. 'reset', string.format('%.6f', now), 'EX', kept + 3 * length)
  for number = math.floor((now - kept) / length) - 2, math.floor(now / length) do
    local slot = base .. name .. ':' .. string.format('%d', number)
    redis.call('UNLINK', slot .. ':sketches', slot .. ':counts')
  end
end
redis.call('UNLINK', base .. 'processes', base .. 'slow')
return 1
"""
