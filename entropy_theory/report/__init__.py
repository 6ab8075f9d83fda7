"""Tables, figures and pages. They read data that the other rooms return, and compute no result of their own."""
