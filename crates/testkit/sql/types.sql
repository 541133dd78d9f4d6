-- Every type of the type map with its difficult values, on PostgreSQL 13 and later (multiranges: types_14.sql).
--
-- Schema "types", one table per group of types, each with the primary key "id" from 1 and a row that is NULL but for its key.
-- Tables named special_* hold what Delta has no value for (infinite dates, NaN in a decimal, arrays of changing depth): under the
-- default policy they are isolated, and a test must choose another policy first. Every other table must be equal as it is.

CREATE SCHEMA types;

---------------------------------------------------------------------------------------------------------------- numbers
CREATE TABLE types.numbers (id int PRIMARY KEY, a_bool bool, an_int2 int2, an_int4 int4, an_int8 int8, an_oid oid, a_float4 float4, a_float8 float8);
INSERT INTO types.numbers VALUES
    (1, true, 0, 0, 0, 0, 0, 0),
    (2, false, 32767, 2147483647, 9223372036854775807, 4294967295, 3.4028235e38, 1.7976931348623157e308),
    (3, NULL, -32768, -2147483648, -9223372036854775808, 2147483648, -3.4028235e38, -1.7976931348623157e308),
    (4, true, 1, 1, 1, 1, 1e-45, 5e-324),
    (5, true, -1, -1, -1, 2147483647, 1.17549435e-38, 2.2250738585072014e-308),
    (6, false, 42, 42, 9007199254740993, 42, 0.1, 0.30000000000000004),
    (7, false, 42, 42, -9007199254740993, 42, 'NaN', 'NaN'),
    (8, false, 42, 42, 42, 42, 'Infinity', 'Infinity'),
    (9, false, 42, 42, 42, 42, '-Infinity', '-Infinity'),
    (10, false, 42, 42, 42, 42, '-0', '-0'),
    (11, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE types.decimals (id int PRIMARY KEY, small numeric(5,2), whole numeric(18,0), wide numeric(38,10), widest numeric(38,0), fraction numeric(38,38),
    nineteen numeric(19,4), too_wide numeric(60,20), plain numeric, amount money);
INSERT INTO types.decimals VALUES
    (1, 0, 0, 0, 0, 0, 0, 0, 0, 0::money),
    (2, 999.99, 999999999999999999, 9999999999999999999999999999.9999999999, 99999999999999999999999999999999999999,
        0.99999999999999999999999999999999999999, 999999999999999.9999, 9999999999999999999999999999999999999999.99999999999999999999, 1.10, '92233720368547758.07'),
    (3, -999.99, -999999999999999999, -9999999999999999999999999999.9999999999, -99999999999999999999999999999999999999,
        -0.99999999999999999999999999999999999999, -999999999999999.9999, -9999999999999999999999999999999999999999.99999999999999999999, -1.100, '-92233720368547758.08'),
    (4, 0.01, 1, 0.0000000001, 1, 0.00000000000000000000000000000000000001, 0.0001, 0.00000000000000000001, 0.000000000000000000000000000000000000000000000000001, '0.01'),
    (5, -0.01, -1, -0.0000000001, -1, -0.00000000000000000000000000000000000001, -0.0001, -0.00000000000000000001, 123456789012345678901234567890123456789012345678901234567890.5, '-0.01'),
    (6, 1.1, 10000, 10000.0001, 100000000, 0.0001, 10000.1, 10000.00010000, 'NaN', '1234567.89'),
    (7, 100.00, 12345678, 1e27, 1e37, 0.1, 1e14, 1e39, 1e130, '0.10'),
    (8, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

------------------------------------------------------------------------------------------------------------------ texts
CREATE TABLE types.texts (id int PRIMARY KEY, a_text text, a_varchar varchar, a_varchar10 varchar(10), a_char5 char(5), a_byte "char", a_name name);
INSERT INTO types.texts VALUES
    (1, '', '', '', '', '', ''),
    (2, ' ', ' lead and trail ', ' x ', 'ab', 'a', 'Name with "quotes"'),
    (3, 'NULL', '\N', '\N', 'NULL', '~', 'null'),
    (4, E'tab\tline\nreturn\rback\\slash', E'\b\f\x01', E'a\nb', E'a\nb', '\', E'a\nb'),
    (5, 'it''s "quoted", {braced}, (bracketed) and $dollared$', '"', '''', '"', '"', ''''),
    (6, 'ÄÖÜäöüß ÅÉÑ ŁŹŽ', 'Ελληνικά кириллица', '日本語', '漢字かな', 'z', 'größe'),
    (7, U&'\+01F600\+01F468\200D\+01F469\200D\+01F467 e\0301 \FEFF\200B\00A0\+10FFFF', U&'\+01F600', U&'\+01F600\+01F600', U&'\+01F600', ' ', U&'\+01F600'),
    (8, repeat('x', 31) || U&'\+10FFFF' || 'tail', repeat('z', 32) || 'a', 'zzzzzzzzzz', 'zzzzz', 'z', repeat('n', 63)),
    (9, repeat(U&'\+10FFFF', 40), repeat(U&'\00FF', 200), repeat(U&'\FFFD', 10), repeat(U&'\FFFF', 5), 'A', repeat('ü', 31)),
    (10, repeat('long ', 3000), repeat('0123456789', 40), '1234567890', '12345', '0', 'plain'),
    (11, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE types.documents (id int PRIMARY KEY, a_uuid uuid, a_json json, a_jsonb jsonb, a_jsonpath jsonpath);
INSERT INTO types.documents VALUES
    (1, '00000000-0000-0000-0000-000000000000', '{}', '{}', '$'),
    (2, 'ffffffff-ffff-ffff-ffff-ffffffffffff', '  {"b" : 1, "a":2, "b" : 1.10 }  ', '{"b" : 1, "a":2, "b" : 1.10 }', '$.a[*] ? (@ > 1.5)'),
    (3, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'null', 'null', 'strict $."odd key"'),
    (4, '12345678-9abc-def0-1234-56789abcdef0', E'["line\\nfeed", "\\u00e4", "\\ud83d\\ude00", "\\"q\\""]', E'["line\\nfeed", "\\u00e4", "\\ud83d\\ude00", "\\"q\\""]', '$[0 to last]'),
    (5, '12345678-9abc-def0-1234-56789abcdef1', '[1e30, 1E-7, -0, 0.10, 123456789012345678901234567890]', '[1e30, 1E-7, -0, 0.10, 123456789012345678901234567890]', '$.**'),
    (6, '80000000-0000-0000-0000-000000000001', '""', '""', '$.x like_regex "^a"'),
    (7, NULL, NULL, NULL, NULL);

CREATE TABLE types.bytes (id int PRIMARY KEY, a_bytea bytea, one_bit bit, eight_bits bit(8), some_bits varbit, five_bits varbit(5));
INSERT INTO types.bytes VALUES
    (1, '\x', B'0', B'00000000', B'', B''),
    (2, '\x00', B'1', B'11111111', B'1', B'11111'),
    (3, '\xff00ff5c785c27', B'1', B'10000001', B'1010101010101010101010101010101010101010101010101010101010101010101', B'01'),
    (4, '\x5c', B'0', B'01111110', repeat('01', 500)::varbit, B'00000'),
    (5, decode(repeat('deadbeef', 5000), 'hex'), B'0', B'00000001', B'0', B'1'),
    (6, NULL, NULL, NULL, NULL, NULL);

--------------------------------------------------------------------------------------------------------- dates and times
CREATE TABLE types.dates (id int PRIMARY KEY, a_date date, a_time time, a_time3 time(3), a_timetz timetz, a_timestamp timestamp, a_timestamp3 timestamp(3),
    a_timestamp0 timestamp(0), a_timestamptz timestamptz, an_interval interval);
INSERT INTO types.dates VALUES
    (1, '1970-01-01', '00:00:00', '00:00:00', '00:00:00+00', '1970-01-01 00:00:00', '1970-01-01', '1970-01-01', '1970-01-01 00:00:00+00', '0'),
    (2, '1969-12-31', '23:59:59.999999', '23:59:59.999', '23:59:59.999999+14', '1969-12-31 23:59:59.999999', '1969-12-31 23:59:59.999', '1969-12-31 23:59:59',
        '1969-12-31 23:59:59.999999+00', '-00:00:00.000001'),
    (3, '0001-01-01', '24:00:00', '24:00:00', '24:00:00-12', '0001-01-01 00:00:00', '0001-01-01', '0001-01-01', '0001-01-02 00:00:00+00', '1 year 2 mons 3 days 04:05:06.789'),
    (4, '9999-12-31', '00:00:00.000001', '00:00:00.001', '00:00:00.000001+05:30', '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999', '9999-12-31 23:59:59',
        '9999-12-31 23:59:59.999999+00', '-1 year -2 mons +3 days -04:05:06.789'),
    (5, '1582-10-04', '12:34:56.7', '12:34:56.7', '12:34:56.7-03:30', '1582-10-04 12:34:56.7', '1582-10-04', '1582-10-04', '1582-10-04 12:00:00+00', '1 mon'),
    (6, '1582-10-15', '12:34:56.789012', '12:34:56.789', '12:34:56.789012+15:59:59', '1582-10-15 12:34:56.789012', '1582-10-15', '1582-10-15', '1582-10-15 12:00:00+00', '30 days'),
    (7, '1900-02-28', '01:00:00', '01:00:00', '01:00:00-15:59:59', '1900-02-28 23:59:59', '1900-02-28', '1900-02-28', '1900-02-28 23:59:59-08', '178000000 years'),
    (8, '2000-02-29', '02:30:00', '02:30:00', '02:30:00+02', '2024-03-31 02:30:00', '2000-02-29', '2000-02-29', '2024-03-31 02:30:00+02', '-178000000 years'),
    (9, '2024-02-29', '03:00:00.10', '03:00:00.1', '03:00:00.10+00:00:01', '2262-04-11 23:47:16.854776', '2024-02-29', '2024-02-29', '2262-04-11 23:47:16.854776+00', '720:00:00'),
    (10, '1677-09-21', '04:00:00', '04:00:00', '04:00:00+01', '1677-09-21 00:12:43.145224', '1677-09-21', '1677-09-21', '1677-09-21 00:12:43.145224+00', '1 day -24:00:00'),
    (11, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- Before the year 1 and after 9999: all of them fit Delta's integers.
CREATE TABLE types.far_dates (id int PRIMARY KEY, a_date date, a_timestamp timestamp, a_timestamptz timestamptz);
INSERT INTO types.far_dates VALUES
    (1, '4713-01-01 BC', '4713-01-01 00:00:00 BC', '4713-01-01 00:00:00+00 BC'),
    (2, '0044-03-15 BC', '0044-03-15 12:00:00.5 BC', '0044-03-15 12:00:00.5+00 BC'),
    (3, '0001-12-31 BC', '0001-12-31 23:59:59.999999 BC', '0001-12-31 23:59:59.999999+00 BC'),
    (4, '10000-01-01', '10000-01-01 00:00:00', '10000-01-01 00:00:00+00'),
    (5, '99999-12-31', '294246-12-31 23:59:59.999999', '294246-12-31 23:59:59.999999+00'),
    (6, NULL, NULL, NULL);

----------------------------------------------------------------------------------------------------------- own types
CREATE TYPE types.mood AS ENUM ('sad', 'ok', 'happy', 'It''s "odd", (really) {so}', '', 'größe');
CREATE DOMAIN types.positive AS int CHECK (value > 0);
CREATE DOMAIN types.price AS numeric(10,2);
CREATE DOMAIN types.net_price AS types.price CHECK (value >= 0);
CREATE DOMAIN types.words AS text[];
CREATE DOMAIN types.short AS varchar(5);
CREATE TABLE types.own_types (id int PRIMARY KEY, a_mood types.mood, a_positive types.positive, a_price types.price, a_net_price types.net_price, some_words types.words, a_short types.short);
INSERT INTO types.own_types VALUES
    (1, 'sad', 1, 0, 0, '{}', ''),
    (2, 'happy', 2147483647, 99999999.99, 99999999.99, '{a,NULL,"b c"}', 'größe'),
    (3, 'It''s "odd", (really) {so}', 7, -99999999.99, 0.01, '{"",NULL,"NULL"}', ' '),
    (4, '', 8, 1.1, 1.10, '{x}', 'x'),
    (5, 'größe', 9, 1, 2, NULL, NULL),
    (6, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TYPE types.inner_pair AS (label text, amount numeric(12,2));
CREATE TYPE types.everything AS (a int, gone int, b text, "Odd Näme" bool, at timestamptz, day date, pair types.inner_pair, tags text[], feel types.mood, raw bytea, f float8);
ALTER TYPE types.everything DROP ATTRIBUTE gone;
CREATE DOMAIN types.checked_pair AS types.inner_pair;
CREATE TABLE types.composites (id int PRIMARY KEY, pair types.inner_pair, everything types.everything, pairs types.inner_pair[], checked types.checked_pair);
INSERT INTO types.composites VALUES
    (1, ROW('', 0), ROW(0, '', false, '1970-01-01 00:00:00+00', '1970-01-01', ROW('', 0), '{}', 'sad', '\x', 0), '{}', ROW('', 0)),
    (2, ROW('it''s "quoted", (bracketed) \ ', 9999999999.99), ROW(2147483647, E'a\nb', true, '9999-12-31 23:59:59.999999+00', '9999-12-31',
        ROW('a,b', -1.5), '{NULL,"",x}', 'It''s "odd", (really) {so}', '\x00ff5c', '-0'), ARRAY[ROW('x', 1), NULL, ROW(NULL, NULL)]::types.inner_pair[], ROW('d', 1.25)),
    (3, ROW(NULL, NULL), ROW(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL), ARRAY[NULL]::types.inner_pair[], ROW(NULL, 2)),
    (4, ROW(' ', NULL), ROW(-1, ' ', NULL, NULL, NULL, ROW(NULL, NULL), NULL, '', NULL, 'NaN'), ARRAY[ROW('{"}', 0.01)]::types.inner_pair[], ROW(' ', NULL)),
    (5, NULL, NULL, NULL, NULL);

----------------------------------------------------------------------------------------------------------------- arrays
CREATE TABLE types.arrays (id int PRIMARY KEY, bools bool[], int2s int2[], int4s int4[], int8s int8[], float4s float4[], float8s float8[], decimals numeric(10,2)[], numerics numeric[],
    texts text[], varchars varchar(5)[], chars char(3)[], byteas bytea[], uuids uuid[], jsonbs jsonb[], dates date[], times time[], timestamps timestamp[],
    timestamptzs timestamptz[], intervals interval[], moneys money[], bits varbit[], names name[], moods types.mood[], prices types.price[], inets inet[], points point[]);
INSERT INTO types.arrays VALUES
    (1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'),
    (2, '{t,f,NULL}', '{-32768,32767,NULL}', '{-2147483648,NULL,2147483647}', '{-9223372036854775808,9223372036854775807}', '{NaN,Infinity,-Infinity,-0,1e-45}',
        '{NaN,Infinity,-Infinity,-0,5e-324}', '{99999999.99,-99999999.99,0.01,NULL}', '{1.10,1e60,NaN,NULL}',
        '{NULL,"NULL","","a,b","{c}","back\\slash","quo\"te"," lead","日本"}', '{abcde,NULL,""}', '{a,"",NULL}', ARRAY['\x', '\x00ff5c22', NULL]::bytea[],
        '{00000000-0000-0000-0000-000000000000,NULL}', ARRAY['{"a": [1, "x"]}', 'null', NULL]::jsonb[], '{1969-12-31,0001-01-01,9999-12-31,NULL}', '{24:00:00,00:00:00.000001,NULL}',
        '{1969-12-31 23:59:59.999999,NULL}', '{1969-12-31 23:59:59.999999+00,NULL}', '{1 year -1 mons,NULL,00:00:00.1}', ARRAY['1.10', '-92233720368547758.08', NULL]::money[], '{101,NULL,0}',
        '{n,NULL}', ARRAY['It''s "odd", (really) {so}', '', NULL]::types.mood[], '{1.10,NULL}', '{10.0.0.1/8,::1,NULL}', ARRAY['(1,2)', '(NaN,-0)', NULL]::point[]),
    (3, '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}',
        '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}'),
    (4, '{t}', '[0:2]={1,2,3}', '[-5:-3]={7,8,9}', '{1}', '{1.5}', '{0.1}', '{1.1}', '{0.0001}', '[2:3]={b,c}', '{x}', '{xyz}', ARRAY['\xff']::bytea[],
        '{ffffffff-ffff-ffff-ffff-ffffffffffff}', ARRAY['[]']::jsonb[], '{2024-02-29}', '{12:00:00}', '{2024-02-29 12:00:00}', '{2024-02-29 12:00:00+02}', '{-30 days}', ARRAY['0']::money[],
        '{1}', '{größe}', ARRAY['ok']::types.mood[], '{0.5}', '{192.168.0.0/24}', ARRAY['(0,0)']::point[]),
    (5, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- Declared with two and three dimensions, which PostgreSQL notes and does not enforce; here every value keeps to them.
CREATE TABLE types.nested_arrays (id int PRIMARY KEY, matrix int[][], table_of_words text[][], cube float8[][][]);
INSERT INTO types.nested_arrays VALUES
    (1, '{}', '{}', '{}'),
    (2, '{{1,2,3},{4,NULL,6}}', '{{a,NULL},{"","NULL"},{"{x}","a,b"}}', '{{{1,2},{3,4}},{{5,NULL},{NaN,-0}}}'),
    (3, '{{NULL}}', '{{"日本"}}', '{{{0.1}}}'),
    (4, '[0:1][5:6]={{1,2},{3,4}}', '{{a},{b}}', '{{{1}},{{2}}}'),
    (5, NULL, NULL, NULL);

----------------------------------------------------------------------------------------------------------------- ranges
CREATE TYPE types.float_range AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TYPE types.text_range AS RANGE (subtype = text, collation = "C");
CREATE TABLE types.ranges (id int PRIMARY KEY, int4s int4range, int8s int8range, nums numrange, timestamps tsrange, timestamptzs tstzrange, dates daterange,
    floats types.float_range, texts types.text_range, int4_list int4range[]);
INSERT INTO types.ranges VALUES
    (1, 'empty', 'empty', 'empty', 'empty', 'empty', 'empty', 'empty', 'empty', '{}'),
    (2, '(,)', '(,)', '(,)', '(,)', '(,)', '(,)', '(,)', '(,)', '{empty,"(,)",NULL,"[1,2]"}'),
    (3, '[1,10)', '[-9223372036854775808,9223372036854775807)', '[1.10,2.200]', '[1969-12-31 23:59:59.999999,2024-02-29]', '(1969-12-31 23:59:59.999999+00,2024-02-29 00:00:00+02]',
        '[2024-01-01,2024-12-31]', '[-0,NaN)', '["a,b","x)y"]', '{"[1,1]"}'),
    (4, '[-2147483648,2147483646]', '(5,)', '(,0.000000000000000000000000000001)', '[2024-01-01,)', '(,2024-01-01 00:00:00+00)', '(,0001-01-01)', '(-Infinity,Infinity)', '["",""]', '{"[,5)","(5,]"}'),
    (5, '[5,5]', '[5,5]', '[5,5]', '[2024-01-01,2024-01-01]', '[2024-01-01 00:00:00+00,2024-01-01 00:00:00+00]', '[2024-01-01,2024-01-01]', '[0.1,0.1]', '["quo\"te","z\\"]', '{NULL}'),
    (6, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

---------------------------------------------------------------------------------------------- networks, shapes, the rest
CREATE TABLE types.networks (id int PRIMARY KEY, an_inet inet, a_cidr cidr, a_macaddr macaddr, a_macaddr8 macaddr8);
INSERT INTO types.networks VALUES
    (1, '0.0.0.0', '0.0.0.0/0', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00'),
    (2, '10.1.2.3/8', '10.0.0.0/8', 'ff:ff:ff:ff:ff:ff', 'ff:ff:ff:ff:ff:ff:ff:ff'),
    (3, '::1', '::/0', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05'),
    (4, '2001:db8::ff00:42:8329/64', '2001:db8::/32', '08002b:010204', '08002b:0102030406'),
    (5, '::ffff:1.2.3.4', '192.168.100.128/25', '0800.2b01.0205', '08002b01:02030407'),
    (6, NULL, NULL, NULL, NULL);

CREATE TABLE types.shapes (id int PRIMARY KEY, a_point point, a_line line, a_lseg lseg, a_box box, a_path path, a_polygon polygon, a_circle circle);
INSERT INTO types.shapes VALUES
    (1, '(0,0)', '{1,0,0}', '[(0,0),(0,0)]', '(0,0),(0,0)', '[(0,0)]', '((0,0))', '<(0,0),0>'),
    (2, '(1.5,-2.25)', '{1,-1,0.5}', '[(1,2),(3,4)]', '(3,4),(1,2)', '((1,2),(3,4),(5,6))', '((0,0),(1,0),(1,1))', '<(1,2),3.5>'),
    (3, '(-0,1e-300)', '{0,1,-0}', '[(-0,1e-300),(1e300,0.1)]', '(0.1,0.2),(-0.1,-0.2)', '[(0.1,0.2),(-0,1e300)]', '((0.1,0.1),(0.2,0.2))', '<(0.1,0.2),0.30000000000000004>'),
    (4, '(NaN,NaN)', '{0.1,0.2,0.3}', '[(1e-5,1e15),(1e16,1e-4)]', '(1e16,1e16),(1e-5,1e-5)', '[(1,1),(1,1)]', '((1e-5,1e16))', '<(1e16,1e-5),1e-5>'),
    (5, '(Infinity,-Infinity)', '{1,2,3}', '[(1,1),(2,2)]', '(2,2),(1,1)', '((0,0))', '((5,5))', '<(5,5),5>'),
    (6, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE types.others (id int PRIMARY KEY, a_tsvector tsvector, a_tsquery tsquery, a_pg_lsn pg_lsn, an_xid xid, an_xid8 xid8, a_cid cid, a_tid tid, a_snapshot pg_snapshot,
    old_snapshot txid_snapshot, a_regclass regclass, a_regtype regtype, a_regproc regproc, a_refcursor refcursor, an_int2vector int2vector, an_oidvector oidvector);
INSERT INTO types.others VALUES
    (1, '', '', '0/0', '0', '0', '0', '(0,0)', '1:1:', '1:1:', 'pg_class', 'integer', 'now', '', '', ''),
    (2, '''it''''s'':1A,2B fat:3 ''quo"te'':4', 'fat & !( ''ra"t'' | it''''s ) & cat:*AB', 'FFFFFFFF/FFFFFFFF', '4294967295', '18446744073709551615', '4294967295', '(4294967295,65535)',
        '10:20:10,14,15', '10:20:10,14,15', 'pg_type', 'timestamp with time zone', 'pg_sleep', 'cursor "x"', '1 -2 32767', '1 4294967295'),
    (3, 'größe:1 日本:2', 'größe <-> 日本', '16/B374D848', '42', '42', '7', '(42,7)', '12:16:14,14', '12:16:14,14', NULL, 'text[]', 'version', 'c', '0', '0'),
    (4, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-------------------------------------------------------------------------------------------------------- large values
-- Stored out of line and not compressed: an update that leaves them untouched does not send them.
CREATE TABLE types.large (id int PRIMARY KEY, counter int, big_text text, big_bytes bytea, big_json jsonb, big_numbers int[], big_number numeric);
ALTER TABLE types.large ALTER big_text SET STORAGE EXTERNAL, ALTER big_bytes SET STORAGE EXTERNAL, ALTER big_json SET STORAGE EXTERNAL, ALTER big_numbers SET STORAGE EXTERNAL;
INSERT INTO types.large SELECT i, i, repeat(chr(96 + i) || 'ü"\', 40000), decode(repeat(lpad(to_hex(i * 17), 2, '0'), 50000), 'hex'),
    jsonb_build_object('k', repeat(i::text, 30000)), (SELECT array_agg(n * i) FROM generate_series(1, 5000) n), repeat(i::text, 20000)::numeric FROM generate_series(1, 5) i;
INSERT INTO types.large VALUES (6, 6, '', '\x', '{}', '{}', 0), (7, NULL, NULL, NULL, NULL, NULL, NULL);

--------------------------------------------------------------------------------------- what Delta has no value for
CREATE TABLE types.special_dates (id int PRIMARY KEY, a_date date, a_timestamp timestamp, a_timestamptz timestamptz);
INSERT INTO types.special_dates VALUES
    (1, '2024-02-29', '2024-02-29 12:00:00', '2024-02-29 12:00:00+00'),
    (2, 'infinity', 'infinity', 'infinity'),
    (3, '-infinity', '-infinity', '-infinity'),
    (4, '5874897-12-31', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00'),
    (5, NULL, NULL, NULL);

CREATE TABLE types.special_decimals (id int PRIMARY KEY, a_decimal numeric(12,2));
INSERT INTO types.special_decimals VALUES (1, 1.10), (2, 'NaN'), (3, -9999999999.99), (4, NULL);

CREATE TABLE types.special_arrays (id int PRIMARY KEY, any_depth int[], days date[]);
INSERT INTO types.special_arrays VALUES (1, '{1,2}', '{2024-02-29}'), (2, '{{1,2},{3,4}}', '{infinity}'), (3, '{}', '{-infinity,NULL}'), (4, NULL, NULL);

CREATE TABLE types.special_ranges (id int PRIMARY KEY, days daterange, moments tstzrange);
INSERT INTO types.special_ranges VALUES (1, '[2024-01-01,infinity]', '[-infinity,infinity]'), (2, '[-infinity,)', '(,infinity)'), (3, '[2024-01-01,2024-02-01)', 'empty'), (4, NULL, NULL);

-------------------------------------------------------------------------------- where the server has them
DO $do$
BEGIN
    BEGIN
        PERFORM '<a/>'::xml;
        CREATE TABLE types.markup (id int PRIMARY KEY, an_xml xml, xmls xml[]);
        INSERT INTO types.markup VALUES
            (1, '<a/>', '{}'),
            (2, E'<?xml version="1.0"?>\n<r a="1&quot;">text &amp; <!-- c --><![CDATA[<x>]]>größe</r>', '{<a/>,NULL,"<b c=\"d\">,</b>"}'),
            (3, 'just text', '{NULL}'),
            (4, NULL, NULL);
    EXCEPTION WHEN feature_not_supported THEN
        RAISE NOTICE 'this server is built without xml';
    END;
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'hstore') THEN
        CREATE EXTENSION IF NOT EXISTS hstore;
        CREATE TABLE types.pairs (id int PRIMARY KEY, an_hstore hstore, hstores hstore[]);
        INSERT INTO types.pairs VALUES
            (1, '', '{}'),
            (2, 'a=>1, b=>NULL, ""=>"", "=>"=>"it''s \"q\"", c=>"NULL", größe=>日本', ARRAY['a=>1', NULL, 'b=>NULL']::hstore[]),
            (3, 'z=>1, y=>2, x=>3', ARRAY['']::hstore[]),
            (4, NULL, NULL);
    END IF;
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'citext') THEN
        CREATE EXTENSION IF NOT EXISTS citext;
        CREATE TABLE types.caseless (id int PRIMARY KEY, a_citext citext, citexts citext[]);
        INSERT INTO types.caseless VALUES (1, '', '{}'), (2, 'MiXeD "Ä"', '{A,a,NULL,"b,c"}'), (3, 'mixed', '{NULL}'), (4, NULL, NULL);
    END IF;
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'ltree') THEN
        CREATE EXTENSION IF NOT EXISTS ltree;
        CREATE TABLE types.paths (id int PRIMARY KEY, an_ltree ltree, an_lquery lquery, ltrees ltree[]);
        INSERT INTO types.paths VALUES (1, '', '*', '{}'), (2, 'Top.Science.Astronomy_2', '*.Science|Arts@*.!x{1,2}', '{Top,NULL,a.b}'), (3, 'a', 'a.b', '{NULL}'), (4, NULL, NULL, NULL);
    END IF;
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'isn') THEN
        CREATE EXTENSION IF NOT EXISTS isn;
        CREATE TABLE types.books (id int PRIMARY KEY, an_isbn isbn, an_ean13 ean13);
        INSERT INTO types.books VALUES (1, '978-0-393-04002-9', '4006381333931'), (2, '0-306-40615-2', '978-0-11-000222-4'), (3, NULL, NULL);
    END IF;
END
$do$;
