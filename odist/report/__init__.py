"""Tables, figures and report pages made from run folders and records; pandas and matplotlib, never torch."""
