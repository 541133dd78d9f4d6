-- What PostgreSQL has only from version 14 on: multiranges, and infinity in numeric. Run after types.sql.

CREATE TYPE types.step_range AS RANGE (subtype = int8, multirange_type_name = types.step_multirange);
CREATE TABLE types.multiranges (id int PRIMARY KEY, int4s int4multirange, int8s int8multirange, nums nummultirange, timestamps tsmultirange, timestamptzs tstzmultirange,
    dates datemultirange, steps types.step_multirange, int4_lists int4multirange[]);
INSERT INTO types.multiranges VALUES
    (1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'),
    (2, '{(,)}', '{(,)}', '{(,)}', '{(,)}', '{(,)}', '{(,)}', '{(,)}', ARRAY['{[1,2]}', NULL, '{}']::int4multirange[]),
    (3, '{[1,2],[5,7),[10,)}', '{(,-9000000000000000000],[5,5]}', '{[1.10,2.200],(3,4)}', '{[1969-12-31 23:59:59.999999,2000-01-01],[2024-02-29,)}',
        '{[1969-12-31 23:59:59.999999+00,2000-01-01 00:00:00+00]}', '{[2024-01-01,2024-01-31],[2024-03-01,2024-03-01]}', '{[1,3),[7,9)}', ARRAY[NULL]::int4multirange[]),
    (4, '{[-2147483648,-2147483647]}', '{[1,2)}', '{(,1),(2,)}', '{(,2024-01-01)}', '{(,2024-01-01 00:00:00+00)}', '{(,2024-01-01)}', '{(,0)}', ARRAY['{(,1),[3,)}']::int4multirange[]),
    (5, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE types.endless_numerics (id int PRIMARY KEY, plain numeric);
INSERT INTO types.endless_numerics VALUES (1, 'Infinity'), (2, '-Infinity'), (3, 'NaN'), (4, 0), (5, NULL);

CREATE TABLE types.special_endless_decimals (id int PRIMARY KEY, plain numeric, list numeric[]);
INSERT INTO types.special_endless_decimals VALUES (1, '1.10', '{1.10}'), (2, 'NaN', '{NaN,Infinity}'), (3, 'Infinity', '{-Infinity}'), (4, '-Infinity', NULL), (5, NULL, NULL);
