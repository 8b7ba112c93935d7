/// Why the broker does not start.
struct StartupRefusal: Error {
    let message: String
    /// The exit status.
    let status: Int32
}
