// JDBC at the console: port and database come from the command line; rows go to standard output.

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;

public class Pools {
    /** A statement is prepared with a name from its fifth execution on, and its result is binary. */
    private static final int EXECUTIONS = 6;

    private static String database;

    public static void main(String[] args) throws SQLException {
        database = args[1];
        String url = "jdbc:postgresql://127.0.0.1:" + args[0] + "/pgbouncer?user=admin";
        try (Connection connection = DriverManager.getConnection(url)) {
            for (String topic : new String[] {"POOLS", "CLIENTS", "STATS"}) {
                try (Statement statement = connection.createStatement()) {
                    print("default", topic, statement.executeQuery("SHOW " + topic));
                }
                try (PreparedStatement statement = connection.prepareStatement("SHOW " + topic)) {
                    for (int n = 1; n < EXECUTIONS; n++) {
                        statement.executeQuery().close();
                    }
                    print("prepared", topic, statement.executeQuery());
                }
            }
            try (Statement statement = connection.createStatement()) {
                finish(connection, statement);
            }
        }
    }

    private static void finish(Connection connection, Statement statement) throws SQLException {
        try {
            statement.execute("NONSENSE");
        } catch (SQLException error) {
            String text = error.getMessage().replace("ERROR: ", "");
            System.out.println("default|error|" + error.getSQLState() + "|" + text);
        }
        if (!connection.isValid(10)) {
            throw new SQLException("the connection is not valid");
        }
        for (String command : new String[] {"PAUSE", "RESUME"}) {
            statement.execute(command + " " + database);
            System.out.println("default|tag|" + command);
            ResultSet rows = statement.executeQuery("SHOW DATABASES");
            while (rows.next()) {
                if (rows.getString("name").equals(database)) {
                    System.out.println("default|paused|" + rows.getInt("paused"));
                }
            }
        }
    }

    private static void print(String way, String topic, ResultSet rows) throws SQLException {
        while (rows.next()) {
            if (!rows.getString("database").equals(database)) {
                continue;
            }
            StringBuilder line = new StringBuilder(way + "|" + topic);
            for (int column = 1; column <= rows.getMetaData().getColumnCount(); column++) {
                String value = rows.getString(column);
                line.append("|" + rows.getMetaData().getColumnLabel(column) + "=");
                line.append(value == null ? "NULL" : value);
            }
            System.out.println(line);
        }
    }
}
