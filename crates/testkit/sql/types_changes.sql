-- Changes of every table of schema "types", to go through the stream: each value inserted, each column of each row updated to the
-- value of the next row, keys changed, rows deleted, and a key deleted and inserted again in one transaction. One statement with
-- many commits inside: run it alone, not within a transaction.
DO $do$
DECLARE
    -- Read before the first commit: version 13 has no snapshot for rows that a loop fetches after one.
    all_tables oid[] := (SELECT array_agg(oid ORDER BY relname) FROM pg_class WHERE relnamespace = 'types'::regnamespace AND relkind = 'r');
    of_table record;
    of_oid oid;
    of_column text;
BEGIN
    FOREACH of_oid IN ARRAY all_tables LOOP
        SELECT of_oid::regclass AS name, string_agg(quote_ident(attname), ', ' ORDER BY attnum) AS columns, array_agg(quote_ident(attname)::text ORDER BY attnum) AS column_list
        INTO of_table FROM pg_attribute WHERE attrelid = of_oid AND attnum > 0 AND NOT attisdropped AND attname <> 'id';
        EXECUTE format('INSERT INTO %s (id, %s) SELECT id + 1000, %s FROM %s', of_table.name, of_table.columns, of_table.columns, of_table.name);
        COMMIT;
        FOREACH of_column IN ARRAY of_table.column_list LOOP
            EXECUTE format($$
                WITH next_row AS (SELECT id, coalesce(lead(id) OVER (ORDER BY id), 1) AS next_id FROM %1$s WHERE id < 1000)
                UPDATE %1$s AS changed SET %2$s = taken.%2$s
                FROM next_row JOIN %1$s AS taken ON taken.id = next_row.next_id WHERE changed.id = next_row.id$$, of_table.name, of_column);
            COMMIT;
        END LOOP;
        EXECUTE format('UPDATE %s SET id = id + 1000 WHERE id %% 3 = 2 AND id > 1000', of_table.name);
        EXECUTE format('UPDATE %s SET id = -id WHERE id = 2', of_table.name);
        COMMIT;
        EXECUTE format('DELETE FROM %s WHERE id %% 3 = 1 AND id > 1000', of_table.name);
        COMMIT;
        EXECUTE format('CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM %s WHERE id = 1', of_table.name);
        EXECUTE format('DELETE FROM %s WHERE id = 1', of_table.name);
        EXECUTE format('INSERT INTO %s SELECT * FROM kept', of_table.name);
        EXECUTE format('DELETE FROM %s WHERE id = 3', of_table.name);
        COMMIT;
    END LOOP;
END
$do$
