// JDBC with named statements from the first execution on: port and database come from the command line.

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.List;

public class Prepared {
    public static void main(String[] args) throws SQLException {
        String url = "jdbc:postgresql://127.0.0.1:" + args[0] + "/" + args[1]
                + "?user=trusty&prepareThreshold=1&preparedStatementCacheQueries=4";
        List<Connection> all = new ArrayList<>();
        for (int number = 0; number < 6; number++) {
            all.add(DriverManager.getConnection(url));
        }
        for (int round = 0; round < 10; round++) {
            for (int number = 0; number < all.size(); number++) {
                for (int kind = 0; kind < 6; kind++) {
                    check(all.get(number), number * 100 + kind, 1000 + round);
                }
            }
        }
        for (Connection connection : all) {
            batch(connection);
            connection.close();
        }
        System.out.println("done");
    }

    private static void check(Connection connection, int added, int value) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement("select ?::int4 + " + added)) {
            statement.setInt(1, value);
            try (ResultSet result = statement.executeQuery()) {
                if (!result.next() || result.getInt(1) != value + added) {
                    throw new IllegalStateException("wrong value for " + added);
                }
            }
        }
    }

    private static void batch(Connection connection) throws SQLException {
        connection.setAutoCommit(false);
        connection.createStatement().execute("create temp table t (n int) on commit drop");
        try (PreparedStatement statement = connection.prepareStatement("insert into t values (?)")) {
            for (int n = 0; n < 100; n++) {
                statement.setInt(1, n);
                statement.addBatch();
            }
            statement.executeBatch();
        }
        check(connection, 5, 5);
        connection.commit();
        connection.setAutoCommit(true);
    }
}
