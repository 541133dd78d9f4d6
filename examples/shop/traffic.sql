-- Traffic for the Shop: shop_step() does one small random piece of business and says what it did. Each call is one transaction:
--
--     psql "$URL" -c 'SELECT shop_step()'
--     pgbench -n -f <(echo 'SELECT shop_step();') -c 2 -T 60 "$URL"
--
-- Out of 20: 8 new orders, 5 changes of an order's status, 4 of a product's stock, 2 deleted (cancelled) orders, 1 new customer.

CREATE OR REPLACE FUNCTION shop_new_order() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    new_order int;
    item_count int := 1 + floor(random() * 4);
BEGIN
    INSERT INTO orders (customer_id, shipping_address)
    SELECT id, (1 + floor(random() * 200))::int || ' ' || (ARRAY['River Road', 'Quai du Rhône', 'Uferstraße', '川沿い通り'])[1 + floor(random() * 4)::int]
    FROM customers ORDER BY random() LIMIT 1
    RETURNING id INTO new_order;

    INSERT INTO order_items (order_id, product_id, quantity, unit_price)
    SELECT new_order, id, 1 + floor(random() * 3), price
    FROM products ORDER BY random() LIMIT item_count;

    UPDATE orders SET total_amount = (SELECT sum(quantity * unit_price) FROM order_items WHERE order_id = new_order)
    WHERE id = new_order;
    RETURN format('order %s with %s items', new_order, item_count);
END
$$;

-- pending, paid, shipped, delivered in turn; now and then a pending order is cancelled instead.
CREATE OR REPLACE FUNCTION shop_change_status() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    changed record;
BEGIN
    UPDATE orders SET status = CASE
        WHEN status = 'pending' AND random() < 0.35 THEN 'cancelled'
        WHEN status = 'pending' THEN 'paid'
        WHEN status = 'paid' THEN 'shipped'
        ELSE 'delivered' END
    WHERE id = (SELECT id FROM orders WHERE status IN ('pending', 'paid', 'shipped') ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id, status INTO changed;
    RETURN CASE WHEN changed.id IS NULL THEN shop_new_order()
                ELSE format('status of order %s: %s', changed.id, changed.status) END;
END
$$;

CREATE OR REPLACE FUNCTION shop_change_stock() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    changed record;
BEGIN
    UPDATE products SET
        stock_quantity = greatest(0, stock_quantity - 5 + floor(random() * 12)::int),
        price = CASE WHEN random() < 0.2 THEN round(price * (0.95 + random() * 0.1)::numeric, 2) ELSE price END
    WHERE id = (SELECT id FROM products ORDER BY random() LIMIT 1)
    RETURNING id, stock_quantity INTO changed;
    RETURN format('stock of product %s: %s', changed.id, changed.stock_quantity);
END
$$;

CREATE OR REPLACE FUNCTION shop_delete_cancelled() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    gone int;
BEGIN
    SELECT id INTO gone FROM orders WHERE status = 'cancelled' ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF gone IS NULL THEN
        RETURN shop_change_status();
    END IF;
    DELETE FROM order_items WHERE order_id = gone;
    DELETE FROM orders WHERE id = gone;
    RETURN format('delete of cancelled order %s', gone);
END
$$;

CREATE OR REPLACE FUNCTION shop_new_customer() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    new_customer int := nextval('customers_id_seq');
BEGIN
    INSERT INTO customers (id, first_name, last_name, email, phone) VALUES (
        new_customer,
        (ARRAY['Anna', 'Ben', 'Chloé', 'Dai', 'Eun', 'Farid', 'Grace', 'Hana'])[1 + floor(random() * 8)::int],
        (ARRAY['Rivers', 'Bach', 'Ruisseau', 'Kawa', 'Gang', 'Nahr', 'Lake', 'Řeka'])[1 + floor(random() * 8)::int],
        format('customer%s@example.com', new_customer),
        CASE WHEN random() < 0.7 THEN format('+1 555 %s', lpad(floor(random() * 10000)::text, 4, '0')) END);
    RETURN format('customer %s', new_customer);
END
$$;

CREATE OR REPLACE FUNCTION shop_step() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    roll float8 := random();
BEGIN
    RETURN CASE
        WHEN roll < 0.40 THEN shop_new_order()
        WHEN roll < 0.65 THEN shop_change_status()
        WHEN roll < 0.85 THEN shop_change_stock()
        WHEN roll < 0.95 THEN shop_delete_cancelled()
        ELSE shop_new_customer() END;
END
$$;
