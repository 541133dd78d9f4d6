-- Tables whose names, schemas and columns are unusual, and tables whose identity is: each must arrive as it is.

CREATE SCHEMA "Größe & Maß";
CREATE SCHEMA sales;

CREATE TABLE "Order Items" ("Id" int PRIMARY KEY, "Quantity" int, "select" text);
CREATE TABLE "_hidden" (id int PRIMARY KEY, v text);
CREATE TABLE ".dot" (id int PRIMARY KEY, v text);
CREATE TABLE "percent%20and~tilde" (id int PRIMARY KEY, v text);
CREATE TABLE "quo""te'd" (id int PRIMARY KEY, "quo""te'd" text);
CREATE TABLE "日本語" ("識別子" int PRIMARY KEY, "名前" text);
CREATE TABLE sales.orders (id int PRIMARY KEY, v text);
CREATE TABLE "Größe & Maß"."Länge/Breite" (id int PRIMARY KEY, "größe" numeric(10,3));
CREATE TABLE long_names (id int PRIMARY KEY, abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijk text);

-- Names of the replica's own columns in bronze, and a dot in a name.
CREATE TABLE own_columns (_op int PRIMARY KEY, _commit_lsn text, _before text, _unchanged int, "dotted.name" text);

-- What identifies a row.
CREATE TABLE two_keys (a int, b text, v text, PRIMARY KEY (b, a));
CREATE TABLE only_key (id int PRIMARY KEY);
CREATE TABLE by_index (code text NOT NULL, part int NOT NULL, v text);
CREATE UNIQUE INDEX by_index_key ON by_index (code, part);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key;
CREATE TABLE by_whole_row (a int, b text);
ALTER TABLE by_whole_row REPLICA IDENTITY FULL;
CREATE TABLE key_and_whole_row (id int PRIMARY KEY, v text);
ALTER TABLE key_and_whole_row REPLICA IDENTITY FULL;
CREATE TABLE append_only (a int, b text);
ALTER TABLE append_only REPLICA IDENTITY NOTHING;

-- Generated and identity columns, partitions, inheritance.
CREATE TABLE generated (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, price numeric(10,2), twice numeric(12,2) GENERATED ALWAYS AS (price * 2) STORED, v text);
CREATE TABLE parted (id int, region int, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE parted_rest (v text, region int NOT NULL, id int NOT NULL);
ALTER TABLE parted ATTACH PARTITION parted_rest DEFAULT;
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (PRIMARY KEY (id), more text) INHERITS (parent);

INSERT INTO "Order Items" VALUES (1, 2, 'x'), (2, NULL, NULL);
INSERT INTO "_hidden" VALUES (1, 'a'), (2, 'b');
INSERT INTO ".dot" VALUES (1, 'a'), (2, 'b');
INSERT INTO "percent%20and~tilde" VALUES (1, 'a'), (2, 'b');
INSERT INTO "quo""te'd" VALUES (1, 'a'), (2, 'b');
INSERT INTO "日本語" VALUES (1, '一'), (2, '二');
INSERT INTO sales.orders VALUES (1, 'a'), (2, 'b');
INSERT INTO "Größe & Maß"."Länge/Breite" VALUES (1, 1.5), (2, NULL);
INSERT INTO long_names VALUES (1, 'a'), (2, 'b');
INSERT INTO own_columns VALUES (1, '0/0', 'b', 1, 'd'), (2, NULL, NULL, NULL, NULL);
INSERT INTO two_keys VALUES (1, 'a', 'x'), (1, 'b', 'y'), (2, 'a', 'z');
INSERT INTO only_key VALUES (1), (2), (3);
INSERT INTO by_index VALUES ('a', 1, 'x'), ('a', 2, 'y'), ('b', 1, NULL);
INSERT INTO by_whole_row VALUES (1, 'same'), (1, 'same'), (1, NULL), (NULL, NULL), (NULL, NULL), (2, 'once');
INSERT INTO key_and_whole_row VALUES (1, 'a'), (2, 'b');
INSERT INTO append_only VALUES (1, 'a'), (1, 'a'), (2, NULL);
INSERT INTO generated (price, v) VALUES (1.10, 'a'), (NULL, 'b');
INSERT INTO parted VALUES (1, 1, 'a'), (1, 2, 'b'), (2, 3, 'c');
INSERT INTO parent VALUES (1, 'of the parent');
INSERT INTO child VALUES (1, 'of the child', 'm'), (2, 'of the child', NULL);
