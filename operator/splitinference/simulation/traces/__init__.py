"""What is played: nodes, links, requests and what happens to them."""
