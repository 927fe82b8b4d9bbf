"""What comes out of finished runs: tables, figures and the report; from files alone."""
