/// The version of all three programs: they are installed and upgraded together.
public let ubdVersion = "0.1.0"
