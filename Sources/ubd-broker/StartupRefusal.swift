/// Why the broker does not start.
struct StartupRefusal: Error {
    let message: String
    /// With what the process ends.
    let status: Int32
}
