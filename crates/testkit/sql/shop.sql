-- The Shop: four tables of a small web shop, their triggers and seed rows. No publication: that is what Alluvium makes.

CREATE TABLE customers (
    id serial PRIMARY KEY,
    first_name varchar(100) NOT NULL,
    last_name varchar(100) NOT NULL,
    email varchar(255) UNIQUE NOT NULL,
    phone varchar(20),
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE products (
    id serial PRIMARY KEY,
    name varchar(255) NOT NULL,
    description text,
    price decimal(10, 2) NOT NULL,
    stock_quantity int DEFAULT 0,
    category varchar(100),
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE orders (
    id serial PRIMARY KEY,
    customer_id int REFERENCES customers (id),
    order_date timestamp DEFAULT CURRENT_TIMESTAMP,
    status varchar(50) DEFAULT 'pending',
    total_amount decimal(12, 2),
    shipping_address text,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE order_items (
    id serial PRIMARY KEY,
    order_id int REFERENCES orders (id),
    product_id int REFERENCES products (id),
    quantity int NOT NULL,
    unit_price decimal(10, 2) NOT NULL,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP
);

CREATE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = clock_timestamp();
    RETURN NEW;
END
$$;

CREATE TRIGGER update_customers_updated_at BEFORE UPDATE ON customers
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_products_updated_at BEFORE UPDATE ON products
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_orders_updated_at BEFORE UPDATE ON orders
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

INSERT INTO customers (first_name, last_name, email, phone) VALUES
    ('Ada', 'Brook', 'ada.brook@example.com', '+44 20 7946 0101'),
    ('Björn', 'Delta', 'bjorn.delta@example.com', '+46 8 5250 0102'),
    ('Chiara', 'Fiume', 'chiara.fiume@example.com', NULL),
    ('Dmitri', 'Reka', 'dmitri.reka@example.com', '+7 495 555 0104'),
    ('Emi', '川上', 'emi.kawakami@example.com', '+81 3 5550 0105');

INSERT INTO products (name, description, price, stock_quantity, category) VALUES
    ('Canoe', 'Two seats, cedar', 1299.00, 7, 'Boats'),
    ('Paddle', 'Ash, 145 cm', 59.90, 120, 'Boats'),
    ('Waders', 'Chest high; "one size fits nobody"', 89.50, 40, 'Clothing'),
    ('River map', NULL, 12.00, 250, 'Maps'),
    ('Thermos', '1 litre', 24.95, 0, 'Camp');

INSERT INTO orders (customer_id, status, total_amount, shipping_address) VALUES
    (1, 'delivered', 1418.80, '1 Mill Lane, Bath'),
    (2, 'shipped', 89.50, 'Strandvägen 7, Stockholm'),
    (3, 'pending', 24.00, E'Via del Fiume 12\nRoma');

INSERT INTO order_items (order_id, product_id, quantity, unit_price) VALUES
    (1, 1, 1, 1299.00),
    (1, 2, 2, 59.90),
    (2, 3, 1, 89.50),
    (3, 4, 2, 12.00);
